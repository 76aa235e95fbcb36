"""Runs the bundle several times, each time in some processes of torch's own launcher; see test_distributed.

Usage: ``python distributed_jobs.py JOBS.json``, a list of ``{"processes": 2, "run_id": "training", "files": [...],
"overrides": {...}}``; 0 processes run without the launcher. The imports, which take longer than a small training, are
done once: all processes are forks of this one.
"""

import json
import os
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher import LaunchConfig, elastic_launch

from luna_monai.networks import LunaModel

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def network_without_batch_statistics():
    """Make a small network without batch normalization, so that results on CPUs equal those of one process."""
    network = LunaModel(conv_channels=2)
    network.tail_batchnorm = torch.nn.GroupNorm(1, 1)
    return network


def run(job):
    """Run the bundle in this process."""
    workflow = ConfigWorkflow(
        config_file=job["files"],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        run_id=job["run_id"],
        workflow_type="train",
        **job["overrides"],
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def run_in_a_fork(job):
    """Run the bundle in one process without a launcher."""
    process = os.fork()
    if process == 0:
        try:
            run(job)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        sys.exit(f"job {job} ended with {code}")


def main():
    """Run all jobs, one after another."""
    # What a training imports on its way: the optimizer takes a second of each process to import torch's compiler.
    import torch._dynamo
    import torch.utils.tensorboard  # noqa: F401

    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(f"job {job}", flush=True)  # noqa: T201 - the log is shown when a test fails
        if job["processes"] == 0:
            run_in_a_fork(job)
            continue
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=job["processes"],
            run_id="test",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            start_method="fork",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(Path(sys.argv[1]).parent / "torchrun")),
        )
        elastic_launch(config, run)(job)


if __name__ == "__main__":
    main()
