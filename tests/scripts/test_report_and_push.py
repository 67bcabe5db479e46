"""`ddpm-unet report` and `push` on the run of a tiny training."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from small import TINY, write_images

from ddpm_unet import Denoiser, Segmenter, UNet, train
from ddpm_unet.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    unet = UNet(sample_size=8, **TINY)
    images = list(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    train(unet, images, run=folder, steps=2, batch_size=2, sample_every=1)
    return folder


def test_a_run_ends_with_its_page_and_its_card(trained, capsys):
    assert "6 images" in (trained / "report.html").read_text()
    card = ModelCard.load(trained / "model" / "README.md")
    assert card.data.license == "unknown"
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert str(trained) not in card.content
    code = card.content.split("```python\n")[1].split("```")[0]
    code = code.replace("steps=250", "steps=2").replace("4,", "1,")
    found = {"FOLDER": trained / "model"}
    exec(code, found)
    assert found["images"].shape == (1, 8, 8, 3)
    (trained / "report.html").unlink()
    main(["report", str(trained)])
    assert "written: " in capsys.readouterr().out
    assert (trained / "report.html").is_file()


def test_a_card_of_ones_own_is_left_alone_and_a_licence_kept(trained):
    card = trained / "model" / "README.md"
    written = card.read_text()
    card.write_text(written.replace("license: unknown", "license: mit"))
    main(["report", str(trained)])
    assert "\nlicense: mit\n" in card.read_text()
    card.write_text("mine")
    main(["report", str(trained)])
    assert card.read_text() == "mine"
    card.write_text(written)


def test_what_is_saved_has_a_card_that_says_how_to_load_it(tmp_path, trained):
    import torch

    denoiser = Denoiser.from_pretrained(trained / "model")
    kinds = {"denoiser": denoiser, "unet": denoiser.unet}
    kinds["segmenter"] = Segmenter.from_denoiser(denoiser, num_classes=2)
    for name, model in kinds.items():
        model.save_pretrained(tmp_path / name)
        card = ModelCard.load(tmp_path / name / "README.md")
        assert card.data.license == "unknown"
        assert "of scores, nothing is known here" in card.content
        code = card.content.split("```python\n")[1].split("```")[0].replace("250", "2")
        Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
        known = {"FOLDER": tmp_path / name, "images": torch.zeros(1, 3, 8, 8), "timesteps": 0}
        exec(code.replace("image.png", f"{tmp_path}/image.png"), known)
    assert not list((tmp_path / "denoiser").glob("*/README.md"))
    (tmp_path / "unet" / "README.md").write_text("mine")
    denoiser.unet.save_pretrained(tmp_path / "unet")
    assert (tmp_path / "unet" / "README.md").read_text() == "mine"


def test_a_segmenter_gets_its_page_once_with_its_scores(tmp_path, monkeypatch):
    from ddpm_unet.evaluation import card

    written = []
    monkeypatch.chdir(tmp_path)
    real = card.write_report
    monkeypatch.setattr(card, "write_report", lambda runs: written.append(real(runs)))
    write_images(tmp_path / "images", 6, 16, 16)
    write_images(tmp_path / "masks", 6, 16, 16, most=1)
    main(["train-seg", "--architecture", "classic", "--classic.base_width", "2", "--classic.depth",
          "2", "--classic.padding", "same", "--data.images", "images", "--data.masks", "masks",
          "--data.size", "8", "--data.split.test", "2", "--train.steps", "2", "--train.batch_size",
          "2", "--train.warmup_steps", "0", "--run", "run"])  # fmt: skip
    assert len(written) == 1
    assert "mean Dice, test" in written[0].read_text()
    assert "mean Dice" in (tmp_path / "run/model/README.md").read_text()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as takes a repository of small files."""

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"id": "me/tiny", "sha": "0" * 40, "siblings": [], "private": False})

    def do_POST(self):
        body, at = self.rfile.read(int(self.headers["Content-Length"])), self.path
        if at.endswith("/repos/create"):
            self.server.created = json.loads(body)
            return self.answer({"url": f"{self.server.url}/me/tiny"})
        if "/preupload/" in at:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in at:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.url}/me/tiny/commit/" + "0" * 40
            return self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self.answer({}, 200 if at.endswith("validate-yaml") else 404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created = {}, None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_pushed_loads_again(hub, trained, tmp_path, capsys):
    main(["push", str(trained), "me/tiny", "--license", "cc-by-4.0", "--private"])
    assert "pushed: " in capsys.readouterr().out
    assert (hub.created["organization"], hub.created["name"]) == ("me", "tiny")
    assert b"\nlicense: cc-by-4.0\n" in hub.files["README.md"]
    for name, content in hub.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    drawn = Denoiser.from_pretrained(tmp_path).sample(1, steps=2, seed=0)
    assert (drawn == Denoiser.from_pretrained(trained / "model").sample(1, steps=2, seed=0)).all()


def test_what_cannot_be_pushed_is_one_line(hub, trained, tmp_path, capsys):
    for folder, name, fault in (
        (tmp_path, "me/tiny", "holds no model"),
        (trained, "me/ti ny", "could not be written on the hub"),
    ):
        with pytest.raises(SystemExit):
            main(["push", str(folder), name])
        assert fault in capsys.readouterr().err
