import gc

from pigeonhole.serving.settle import settle


def test_what_was_loaded_is_no_more_work_for_the_garbage_collector() -> None:
    gc.disable()
    kept: list[list[int]] = [[] for _ in range(1000)]
    try:
        settle()
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()
        gc.enable()
