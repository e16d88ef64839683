"""What `hone tune` learns of somebody's handwriting by which scope: a table for the card.

    python scopes.py --hone HONE [--learn 160 600] [--seeds 1 2 3]

So many labelled pictures of new-pen's stream, drawn by the seed, a fifth of which judges; ten epochs, batch 16, at each rate;
accuracy on the 600 pictures of its test split, by `hone eval` with what the gate published.
"""

import argparse
import csv
import json
import random
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORLD, BUNDLE = HERE / "worlds/new-pen", HERE / "which-digit.hone"
SCOPES, RATES = ["head", "bias,head", "lora,head"], ["0.001", "0.003", "0.01"]


def put(rows, into):
    for r in rows:
        (into / r["label"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(WORLD / r["image"], into / r["label"])
    return into


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    # 4: the gate kept what was there, and what is in use is measured all the same.
    assert done.returncode in (0, 4), done.stderr
    return json.loads(done.stdout)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--hone", type=Path, required=True)
    p.add_argument("--learn", type=int, nargs="+", default=[160, 600])
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    a = p.parse_args()
    rows = list(csv.DictReader((WORLD / "index.csv").open()))
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        test = put([r for r in rows if r["split"] == "test"], root / "test")
        before = run(a.hone, "eval", BUNDLE, "--data", test, "--json")["accuracy"]
        print(f"before: {100 * before:.1f} %\n\n| pictures | rate | {' | '.join(SCOPES)} |\n|---|---|{'---|' * len(SCOPES)}")
        for n in a.learn:
            learn = {}
            for seed in a.seeds:
                stream = [r for r in rows if r["split"] == "stream"]
                random.Random(seed).shuffle(stream)
                learn[seed] = put(stream[:n], root / f"learn-{n}-{seed}")
            for rate in RATES:
                cells = []
                for scope in SCOPES:
                    found = []
                    for seed, data in learn.items():
                        state = root / f"{n}-{rate}-{scope}-{seed}"
                        run(a.hone, "tune", BUNDLE, "--state", state, "--data", data, "--scope", scope, "--lr", rate, "--epochs", 10,
                            "--batch", 16, "--seed", seed, "--json")
                        found.append(100 * run(a.hone, "eval", BUNDLE, "--state", state, "--data", test, "--json")["accuracy"])
                    cells.append(f"{statistics.mean(found):.1f} ({' '.join(f'{v:.1f}' for v in found)})")
                print(f"| {n} | {rate} | {' | '.join(cells)} |", flush=True)


main()
