"""Lets threadpoolctl, where it is installed, limit the compiled core's threads along with BLAS and OpenMP."""

from __future__ import annotations


def register() -> None:
    """Make the compiled core known to threadpoolctl.

    Afterwards ``threadpoolctl.threadpool_limits(1)`` holds for training, too, and
    ``threadpool_limits(1, user_api="gradstep")`` for it alone.
    """
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        return
    if not hasattr(threadpoolctl, "register"):  # before version 3.2
        return

    class GradstepController(threadpoolctl.LibController):  # type: ignore[misc]
        """The pool of ``gradstep._core``."""

        user_api = "gradstep"
        internal_api = "gradstep"
        filename_prefixes = ("_core.",)
        # Other packages have a _core as well: this symbol tells ours.
        check_symbols = ("gradstep_num_threads",)

        def get_num_threads(self) -> int:
            return int(self.dynlib.gradstep_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.gradstep_set_num_threads(num_threads)

        def get_version(self) -> None:
            """None: the package has one, the library not."""

    threadpoolctl.register(GradstepController)
