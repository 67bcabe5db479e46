import multiprocessing
import time

from ddpm_unet.data.downloads import one_at_a_time


def fill(folder):
    """Download unless it has been done; two at once would both find nothing."""
    with one_at_a_time(folder):
        if not (folder / "data").exists():
            time.sleep(0.3)
            (folder / "data").touch()
            (folder.parent / f"{multiprocessing.current_process().pid}").touch()


def test_of_several_processes_one_downloads(tmp_path):
    fork = multiprocessing.get_context("fork")
    folder = tmp_path / "new" / "cache"
    processes = [fork.Process(target=fill, args=(folder,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(folder.parent.iterdir())) == 2
    assert [path.name for path in folder.iterdir()] == ["data"]
