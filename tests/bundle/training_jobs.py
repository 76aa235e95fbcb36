"""Runs the bundle's training several times, each in a process of its own that may be killed; see test_stop_and_resume.

Usage: ``python training_jobs.py JOBS.json``, a list of ``{"overrides": {...}, "kill_in_epoch": 3 or null}``. The
imports, which take longer than a small training, are done once: each job is a fork of this process.
"""

import json
import os
import signal
import sys
from pathlib import Path

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from luna_monai.training import RunState

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def make_workflow(overrides):
    """Read the bundle's configuration."""
    return ConfigWorkflow(
        config_file=str(CONFIGS / "train.yaml"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        run_id="training",
        workflow_type="train",
        **overrides,
    )


def train(overrides, kill_in_epoch):
    """Train; with ``kill_in_epoch`` this process is killed after the first iteration of that epoch."""
    workflow = make_workflow(overrides)
    workflow.initialize()
    # Each epoch counts as the best so far, so that weights and predictions are of an epoch after the stop.
    run_state = workflow.parser.get_parsed_content("run_state")
    run_state.update = lambda *epoch: run_state.best_metrics.clear() or RunState.update(run_state, *epoch)

    def kill(engine):
        if engine.state.epoch == kill_in_epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    workflow.run()
    workflow.finalize()


def main():
    """Run all jobs, one after another, and exit with 1 if one did not end as expected."""
    # What a training imports on its way: the optimizer takes a second of each process to import torch's compiler.
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    jobs = json.loads(Path(sys.argv[1]).read_text())
    make_workflow(jobs[0]["overrides"]).initialize()
    for job in jobs:
        process = os.fork()
        if process == 0:
            try:
                train(**job)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code != (0 if job["kill_in_epoch"] is None else -signal.SIGKILL):
            sys.exit(f"job {job} ended with {code}")


if __name__ == "__main__":
    main()
