"""The loop of a peer's process: read requests, let the script given as argument quantize, answer.

It runs in the peer's own interpreter and imports nothing of vqcompress. A script defines
``quantize(weight [out, columns], moment [columns, columns] or None, **options)`` -> ``(dense, stored bytes)`` and
raises `ValueError` for a weight that its format cannot take.
"""

import json
import os
import runpy
import sys

from safetensors.torch import load_file, save_file


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a package prints must not end up among the answers
    quantize = runpy.run_path(sys.argv[1])["quantize"]
    for line in sys.stdin:
        request = json.loads(line)
        tensors = load_file(request["source"])
        try:
            dense, nbytes = quantize(tensors["weight"], tensors.get("moment"), **request["options"])
            save_file({"dense": dense.detach().float().contiguous().clone()}, request["target"])
            answer: dict = {"nbytes": int(nbytes)}
        except ValueError as error:
            answer = {"unfit": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
