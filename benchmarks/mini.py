"""How good are the embedded teacher and a style student trained on it? Writes the table that the
docs quote.

    python benchmarks/mini.py --lora runs/demo/demo.safetensors --style poster --count 256

Rows: the teacher in 50 guided DDIM steps, the student in 1, 2, 4 and 8 steps, and true clips as the
reference. The judge was trained on ground truth alone. Also measured: the autoencoder in dB on
every look, one it never saw included, and the judge on held-out ground truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

UNSEEN = 24
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument(
        "--style", default="poster", help="example style that the LoRA was trained on"
    )
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "mini.json")
    options = parser.parse_args()

    from minimaker.autoencoder import reconstruction_psnr
    from minimaker.judge import judge_accuracy
    from minimaker.looks import HELD_OUT, STYLES, public_video, random_style
    from minimaker.truth import JUDGE, true_worlds
    from trainer.evaluate.table import Evaluation, evaluate
    from trainer.families import load_model
    from trainer.mini.networks import load_judge
    from trainer.mini.words import style_folder

    model = load_model("mini")
    asked = Evaluation(
        lora=options.lora,
        style=style_folder(options.style),
        worlds=true_worlds(style_folder(options.style)),
        count=options.count,
        guidance_scale=options.guidance,
    )
    result = evaluate(
        model, asked, lambda what, done, total: print(f"\r{what} {done}/{total}   ", end="")
    )
    looks = {"public video": public_video, **STYLES, "held out": HELD_OUT}
    vae = model.codec.vae
    psnr = {name: round(reconstruction_psnr(vae, look), 2) for name, look in looks.items()}
    unseen = [random_style(np.random.default_rng(10**6 + seed)) for seed in range(UNSEEN)]
    each = [reconstruction_psnr(vae, look, frames=24) for look in unseen]
    psnr[f"{UNSEEN} unseen random styles, mean"] = round(sum(each) / UNSEEN, 2)
    judge = load_judge(JUDGE)
    right = {name: judge_accuracy(judge, [look], 256, seed=900) for name, look in looks.items()}
    found = {**result.to_json(), "autoencoder_psnr": psnr, "judge_accuracy": right}
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n" + result.text(intervals=True))
    print("autoencoder, dB:", psnr)
    print("judge on true clips:", right)


if __name__ == "__main__":
    main()
