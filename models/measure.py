"""Measures how much presses teach the small models, and writes the table of each card.

    python3 measure.py ../target/release/hone [NAME...]

Every figure is a run of `hone demo`: a person who is simulated presses an emulated pad; journal, learner and gate are the real ones.
Every tenth press is a long one, made with care, which never trains. Mean of seeds 101, 102 and 103, on held-out samples.
"""

import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
MODELS = {
    "eight": (["thumbs"], ["frr", "far", "auc"]),
    "seven": (["thumbs"], ["frr", "far", "auc"]),
    "diamond": (["thumbs", "corrections"], ["mae", "within"]),
    "strip": (["thumbs", "corrections"], ["micro_f1", "exact"]),
    "lump": (["thumbs"], ["far", "frr", "auc"]),
    "emoji": (["thumbs", "corrections"], ["recall_at_1", "recall_at_5"]),
}
PRESSES, WRONG, SEEDS = (50, 100, 200), (0.0, 0.1), (101, 102, 103)


def demo(hone, name, press, presses, wrong, seed):
    with tempfile.TemporaryDirectory() as state:
        command = [hone, "demo", "--json", "--model", HERE / name / f"{name}.hone", "--data", HERE / name / "world", "--press", press]
        command += ["--presses", str(presses), "--wrong", str(wrong), "--seed", str(seed), "--state", state]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def table(hone, name):
    presses, figures = MODELS[name]
    rows = ["| pressed | wrong | " + " | ".join(f"{f}: " + " / ".join(map(str, (0, *PRESSES))) for f in figures) + " | right on the source |"]
    rows.append("|---" * (len(figures) + 3) + "|")
    for press in presses:
        for wrong in WRONG:
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                runs = {n: [pool.submit(demo, hone, name, press, n, wrong, seed) for seed in SEEDS] for n in PRESSES}
                docs = {n: [run.result() for run in of] for n, of in runs.items()}
            value = lambda doc, f, when: next(m[when] for m in doc["measures"] if m["name"] == f)
            mean = lambda of: sum(of) / len(of)
            cells = []
            for f in figures:
                curve = [value(docs[PRESSES[0]][0], f, "before")] + [mean([value(d, f, "after") for d in docs[n]]) for n in PRESSES]
                cells.append(" / ".join(f"{v:.3f}" for v in curve))
            last = docs[PRESSES[-1]]
            kept = f"{last[0]['source_before']:.3f} → {mean([d['source_after'] for d in last]):.3f}"
            rows.append(f"| {press} | {100 * wrong:.0f} % | " + " | ".join(cells) + f" | {kept} |")
            print(name, rows[-1], flush=True)
    return "\n".join(rows)


def main():
    hone, names = sys.argv[1], sys.argv[2:] or list(MODELS)
    for name in names:
        card = HERE / name / "README.md"
        text = table(hone, name)
        card.write_text(re.sub(r"(<!-- measured -->\n).*(<!-- /measured -->)", lambda m: m[1] + text + "\n" + m[2], card.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
