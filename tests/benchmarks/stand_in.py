"""Stands in for the process of an entry, without what that imports: ends as the entry's target says."""

import json
import os
import sys
import time
from pathlib import Path

given = json.loads(sys.argv[1])
result = {
    "figures": {"numbers": [given["arguments"]["number"]]},
    "hardware": {"cpu": "a CPU"},
    "versions": {"torch": "2"},
}
file = Path(given["folder"]) / "result.json"
file.write_text(json.dumps(result))
if given["target"] == "works":
    file.write_text(json.dumps({**result, "done": True}))
elif given["target"] == "fails":
    file.write_text(json.dumps({**result, "error": "it is broken"}))
    sys.exit(1)
elif given["target"] == "skips":
    file.write_text(json.dumps({**result, "skipped": "nothing is here"}))
elif given["target"] == "dies":
    print("the last\x1b words", flush=True)
    os.abort()
elif given["target"] == "hangs":
    if os.fork():
        Path(os.environ["STAND_IN"]).write_text(str(os.getpid()))
    time.sleep(60)
