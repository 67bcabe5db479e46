import pytest
import torch
from accelerate import Accelerator

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.errors import UserError
from ddpm_unet.inference.denoiser import generate, generate_together


class Process:
    """One of several processes, as `generate` sees it."""

    device = torch.device("cpu")
    is_main_process = False

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes

    def gather(self, images):
        return torch.cat([images] * self.num_processes)


def denoiser(x, t):
    """Each image by itself."""
    return 0.5 * x + t.view(-1, 1, 1, 1) / 1000


def images(process=None, number=7, batch_size=3, **options):
    return {
        index: image
        for indices, batch in generate(
            denoiser,
            make_scheduler("ddpm", GaussianDiffusion()),
            (1, 4, 6),
            number,
            seed=5,
            steps=4,
            batch_size=batch_size,
            accelerator=process or Accelerator(cpu=True),
            **options,
        )
        for index, image in zip(indices, batch, strict=True)
    }


def test_every_image_is_drawn_once_and_is_the_same_in_any_batch():
    first = images()
    assert sorted(first) == list(range(7))
    for other in (images(batch_size=1), images(batch_size=64), images(number=2)):
        for index, image in other.items():
            torch.testing.assert_close(image, first[index])
    assert len({tuple(image.flatten().tolist()) for image in first.values()}) == 7


def test_processes_share_the_job_bit_for_bit():
    alone = images()
    parts = [images(Process(rank, 2)) for rank in range(2)]
    assert sorted(parts[0]) == [0, 1, 2, 6]
    assert sorted(parts[1]) == [3, 4, 5]
    assert all(torch.equal(image, alone[i]) for part in parts for i, image in part.items())


def test_more_processes_than_batches():
    assert images(Process(4, 5)) == {}


def test_the_callback_sees_the_first_batch_only():
    seen = []
    images(callback=lambda moment: seen.append((moment.step, len(moment.x0))))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("wrong", [{"number": 0}, {"batch_size": 0}])
def test_nothing_to_draw_is_an_error(wrong):
    with pytest.raises(UserError, match="give at least 1"):
        images(**wrong)


def test_all_processes_together_draw_the_first_images():
    common = {"seed": 5, "steps": 4}
    scheduler = make_scheduler("ddpm", GaussianDiffusion())
    alone = generate_together(
        denoiser, scheduler, (1, 4, 6), 5, accelerator=Accelerator(cpu=True), **common
    )
    torch.testing.assert_close(alone, torch.stack(list(images(number=5).values())))
    parts = [
        generate_together(denoiser, scheduler, (1, 4, 6), 5, accelerator=Process(rank, 2), **common)
        for rank in range(2)
    ]
    torch.testing.assert_close(parts[0][:3], alone[:3])
    torch.testing.assert_close(parts[1][:2], alone[3:5])
