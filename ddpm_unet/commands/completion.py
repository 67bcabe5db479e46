"""What makes a shell complete commands and flags: `ddpm-unet completion bash >> ~/.bashrc`.

It holds the names of this version, so write it anew after an update. Of fish it belongs in
~/.config/fish/completions/ddpm-unet.fish.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from ddpm_unet.cli import COMMANDS, ArgumentParser, run

BASH = """_ddpm_unet() {{
  local words="{commands}"
  if [[ $COMP_CWORD -gt 1 ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _ddpm_unet ddpm-unet"""

OF_SETTINGS = ("check", "train-ddpm", "train-seg", "train-autoencoder")
"""Commands whose --help shows some of their flags."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    shell = parser.parse_args(arguments).shell
    flags = {name: flags_of(name) for name in COMMANDS if name != "completion"}
    flags["completion"] = ["bash", "zsh", "fish"]
    if shell == "fish":
        for name, (_, what) in COMMANDS.items():
            print(f'complete -c ddpm-unet -n __fish_use_subcommand -f -a {name} -d "{what}"')
            seen = f'complete -c ddpm-unet -n "__fish_seen_subcommand_from {name}"'
            for flag in flags[name]:
                kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-a {flag}"
                print(f"{seen} {kind}")
        return
    cases = "\n".join(f'      {n}) words="{" ".join(each)}" ;;' for n, each in flags.items())
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(BASH.format(commands=" ".join(COMMANDS), cases=cases))


def flags_of(command: str) -> list[str]:
    """The flags of a command, as its help names them."""
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        run(command, ["--help-all" if command in OF_SETTINGS else "--help"])
    return list(dict.fromkeys(re.findall(r"^ +(?:-\w, )?(--[\w.]+)", said.getvalue(), re.M)))
