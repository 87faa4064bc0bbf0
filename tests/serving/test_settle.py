import gc

from pigeonhole.serving.settle import THRESHOLDS, settle


def test_what_was_loaded_is_no_more_work_for_the_garbage_collector() -> None:
    usual = gc.get_threshold()
    gc.disable()
    kept: list[list[int]] = [[] for _ in range(1000)]
    try:
        settle()
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
        assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
        gc.enable()
