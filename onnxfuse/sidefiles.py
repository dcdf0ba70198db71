"""What a run writes besides the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import files
from .errors import OutputError
from .plan import Plan
from .report import Report
from .streams import dumped


@dataclass(frozen=True)
class SideFiles:
    """The files of `--json` and `--plan`.

    Attributes:
        json: the report; a device or a pipe, such as `>(jq .)` of a shell, is written to as it is.
        plan: every merge, its matrices beside it.
        read: files that are read besides those that the options name.
    """

    json: Path | None = None
    plan: Path | None = None
    read: tuple[Path, ...] = ()

    def check(self, destination: Path | None, read: Sequence[Path], models: Sequence[Path]) -> None:
        """Before any work: they can be written, as the model can, and nothing that is read is lost.

        Args:
            destination: of the model, which may be one of the models.
            read: by the run's options.
            models: that are read.

        Raises:
            OutputError, UsageError: as `files.check_results`.
        """
        files.check_results([*files.with_data(destination), *self.paths()], [*read, *self.read])
        files.check_unread(self.paths(), models)

    def paths(self) -> list[Path]:
        """All of them, but for pipes."""
        report = [] if self.json is None or _is_pipe(self.json) else [self.json]
        return report if self.plan is None else [*report, self.plan, Path(f"{self.plan}.npz")]

    def write(self, report: Report, plan: Plan) -> None:
        """Each replaces its predecessor in one step.

        Raises:
            OutputError: one cannot be written.
        """
        text = dumped(report.as_json())
        try:
            if self.json is not None and _is_pipe(self.json):
                self.json.write_text(text)
            elif self.json is not None:
                with files.staged(files.resolved(self.json)) as directory:
                    (directory / "report").write_text(text)
                    files.move(directory / "report", files.resolved(self.json))
            if self.plan is not None:
                self._write_plan(self.plan, plan)
        except OSError as error:
            raise OutputError(f"{error.filename}: cannot be written: {error.strerror}") from error

    def _write_plan(self, path: Path, plan: Plan) -> None:
        with files.staged(files.resolved(path)) as directory:
            plan.save(directory / "plan")
            for suffix in (".npz", ""):
                files.move(directory / f"plan{suffix}", files.resolved(Path(f"{path}{suffix}")))


NONE = SideFiles()


def _is_pipe(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
