"""A module like wandb: a server that keeps the rows of each run, and folders where it is offline."""

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace


class StandIn(ModuleType):
    """Records what wandb would.

    Attributes:
        rows: on the server, by run: each with its step.
        files: of the folders that were written offline: rows by folder.
        configs, results: of each run.
    """

    def __init__(self):
        super().__init__("wandb")
        self.rows, self.files, self.configs, self.results, self.axes = {}, {}, {}, {}, {}
        self.Settings = SimpleNamespace

    def init(self, *, project, id, name, dir, resume, config, settings):
        assert (project, resume, name) == ("hpcdat", "allow", Path(dir).name)
        self.configs[id] = config
        return Run(self, id, Path(dir), os.environ["WANDB_MODE"] == "offline")


class Run:
    def __init__(self, module, id, folder, offline):
        self.module, self.id, self.offline = module, id, offline
        here = folder / "wandb" / f"{'offline-' * offline}run-{len(module.files)}-{id}"
        (here / "files").mkdir(parents=True)
        self.dir = str(here / "files")
        module.files[here] = []
        self._rows = module.files[here] if offline else module.rows.setdefault(id, [])
        self.step = len(self._rows)
        self.summary = module.results.setdefault(id, {})

    def define_metric(self, name, step_metric):
        self.module.axes[name] = step_metric

    def log(self, values, step):
        # As wandb, which drops a row whose step is not a new one.
        if step == len(self._rows):
            self._rows.append(values)

    def finish(self, exit_code):
        self.module.configs[self.id]["exit_code"] = exit_code
