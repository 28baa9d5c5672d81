"""What NVFlare starts for each client: silotune's `Silo.train` behind NVFlare's Client API.

The loop is that of NVFlare's documentation (`flare.init`, ``while flare.is_running()``, `receive`,
`send`); the work in it is the code that `client.client_app` runs. Started by NVFlare as a script.
"""

import argparse
import importlib
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Answer training tasks until NVFlare ends the job."""
    import torch

    from client.worker import worker_for
    from silotune.messages import TrainRequest

    # Optional: imported by name, so that no tool misses it.
    flare = importlib.import_module("nvflare.client")
    parser = argparse.ArgumentParser()
    parser.add_argument("--federation", type=Path, required=True)
    federation = parser.parse_args().federation
    worker = worker_for(federation)
    job = worker.federation.jobs[0]
    model = worker.model(job.model)
    flare.init()
    # Sites are named site-1, site-2, … by the simulator.
    index = int(flare.get_site_name().rsplit("-", 1)[1]) - 1
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        round_ = int(received.current_round)
        what = TrainRequest(
            job=job.name,
            round=round_,
            task=worker.federation.task.name,
            model=job.model,
            base_digest=model.base_digest,
            layout_digest=model.layout.digest,
            private=job.private,
        )
        adapter_D = torch.tensor(received.params["numpy_key"], dtype=torch.float32)
        with worker.silo(index, job, round_) as silo:
            out = silo.train(what, adapter_D, model)
            update_D = out.vector()
            silo.handed_over(out)
        new_D = (adapter_D + update_D).numpy()
        flare.send(flare.FLModel(params={"numpy_key": new_D}, metrics={"accuracy": 0.0}))


if __name__ == "__main__":
    main()
