import json
import os
import resource

import pytest
import torch

from ddpm_unet.errors import UserError
from ddpm_unet.training import checkpoint
from ddpm_unet.training.checkpoint import (
    checkpoint_paths,
    newest_checkpoint,
    prune_checkpoints,
    write_checkpoint,
)


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 4), value)}, "ema": {"w": torch.full((3, 4), -value)}}


def write_three(folder):
    return [write_checkpoint(folder, s, tensors(s), {"step": s}) for s in (1, 2, 10)]


def test_the_newest_is_found_and_old_ones_are_pruned(tmp_path):
    assert newest_checkpoint(tmp_path / "missing") is None
    write_three(tmp_path)
    partial = tmp_path / ".00000011.partial"
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({"step": 11}))
    assert newest_checkpoint(tmp_path)[1] == {"step": 10}
    assert not partial.exists()
    prune_checkpoints(tmp_path, keep=2)
    assert [p.name for p in checkpoint_paths(tmp_path)] == ["00000002", "00000010"]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "removed"])
def test_a_damaged_one_is_kept_aside_and_the_previous_one_used(tmp_path, file, damage):
    path = write_three(tmp_path)[-1] / file
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    found, state, notes = newest_checkpoint(tmp_path)
    assert state == {"step": 2}
    assert torch.equal(found["model"]["w"], torch.full((3, 4), 2.0))
    assert len(notes) == 1
    assert "00000010" in notes[0]
    assert (tmp_path / "00000010.damaged").is_dir()


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    for path in write_three(tmp_path):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no good checkpoint"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("room", [20_000, 40_700, 41_000])
def test_a_full_disk_leaves_the_last_good_one(tmp_path, room):
    write_checkpoint(tmp_path, 1, tensors(1), {"step": 1})
    large = {"model": {"w": torch.zeros(10_000)}}  # safetensors: 40,072 bytes
    state = {"step": 2, "long": "x" * 40_800}
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            write_checkpoint(tmp_path, 2, large, state)
        except UserError as error:
            told = "00000002: could not be written" in str(error) and "\n" not in str(error)
            os._exit(3 if told and "File too large" in str(error) else 4)
        os._exit(0)
    enough = room == 41_000
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if enough else 3)
    assert newest_checkpoint(tmp_path)[1]["step"] == (2 if enough else 1)
    assert not list(tmp_path.glob(".*"))


def test_unreadable_for_lack_of_permission_is_not_damage(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, tensors(1), {"step": 1})

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "_digest", forbidden)
    with pytest.raises(UserError, match="may not be read"):
        newest_checkpoint(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def test_a_bad_sector_is_damage(tmp_path, monkeypatch):
    write_three(tmp_path)
    digest = checkpoint._digest

    def failing(path):
        if path.parent.name == "00000010":
            raise OSError(5, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint, "_digest", failing)
    _, state, notes = newest_checkpoint(tmp_path)
    assert state == {"step": 2}
    assert "Input/output error" in notes[0]
