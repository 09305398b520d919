"""A trainer that learns nothing: it takes `--config job.toml [--resume]` and does what the job says."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scdpo_core.config import toml
from scdpo_core.run_store.events import Done, EventLog, Failed, Progress, Sample, Saved, Started, Warned

# So that a test that dies leaves nobody behind.
LONGEST = 120.0


def main() -> None:
    job = Path(sys.argv[sys.argv.index("--config") + 1])
    folder, settings = job.parent, toml.loads(job.read_text("utf-8"))
    mark, stop = folder / "trained", folder / "stop"
    log, steps, end = EventLog(folder / "events.jsonl"), settings["steps"], settings.get("end", "finish")
    print("the fake trainer wakes up", flush=True)
    if end == "lacks":
        raise ModuleNotFoundError("No module named 'peft'")
    first = int(mark.read_text()) if "--resume" in sys.argv else 0
    log(Started(folder.name, os.getpid(), first, steps, 3, "cpu", "0123456789ab"))
    log(Warned("an image is odd"))
    began = time.monotonic()
    for step in range(first + 1, steps + 1):
        time.sleep(settings["pause"])
        log(Progress("train", step, steps, {"loss": 1 / step}, 2.0, (steps - step) / 2))
        mark.write_text(str(step))
        if stop.exists() or time.monotonic() - began > LONGEST:
            stop.unlink(missing_ok=True)
            log(Done("stopped", step, "", 0.1))
            return
    if end == "fail":
        log(Failed("The disk is full."))
        sys.exit(2)
    if end == "raise":
        raise ValueError("seven is no number")
    if end == "vanish":
        os._exit(9)
    name = f"{folder.name}.safetensors"
    (folder / name).write_bytes(b"weights")
    log(Sample(steps, "samples/0.png", "a cat", 0))
    log(Saved(steps, name, "lora"))
    log(Done("finished", steps, name, 0.1))


if __name__ == "__main__":
    main()
