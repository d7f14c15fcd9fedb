r"""Optimal flow matching, arXiv:2403.13117 (R07).

python -m experiments.train --config=configs/flow_matching/optimal_flow_matching.py:gaussians8
    --workdir=runs
Paper: Gaussian to eight Gaussians is a figure, without a number; its numbers are of a W2 benchmark.
Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("gaussians8", "moons", "smoke")


def get_config(variant="gaussians8"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  # jaxgen/models/flow_matching/optimal_flow_matching.py
  c.model = "flow_matching.optimal_flow_matching"
  c.args = dict(  # keywords of its build()
    image_shape=(1, 1, 2),
    start="noise",
    net_args=dict(widths=(128, 128, 64), rank=1, beta=1e-4),
    tolerance=3e-3,
    max_steps=50,
    tx=dict(
      lr=3e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0, warmup=0, decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.99),
    accumulate=1,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="toy:gaussians8", batch_size=256, image_size=0, flip=False, workers=0, timeout=600
  )
  c.train = dict(
    steps=1500, log_every=100, sample_every=0, eval_every=0, eval_examples=1000,
    checkpoint_every=500, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "moons":
    c.args.start = "data"
    c.data.source = "pair:toy:gaussians8->toy:moons"
  elif variant == "smoke":
    c.args.image_shape = (8, 8, 1)
    c.args.net_args = dict(widths=(16, 16), rank=1, beta=1e-4)
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
