r"""Neural ODE / continuous normalizing flow, arXiv:1806.07366.

python -m experiments.train --config=configs/flow_matching/neural_ode.py:moons --workdir=runs
Paper: two moons with M = 64, Figure 5: samples and densities, without a number. Of these moons the
entropy, which no flow can beat, is RESULTS.md's. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("moons", "smoke")


def get_config(variant="moons"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.neural_ode"  # jaxgen/models/flow_matching/neural_ode.py
  c.args = dict(  # keywords of its build()
    image_shape=(1, 1, 2),
    pixels=False,
    net="Planar",
    net_args=dict(M=64, hidden=16),
    gradient="direct",
    trace="exact",
    rtol=1e-4,
    atol=1e-4,
    max_steps=1000,
    tx=dict(
      lr=3e-3,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=0,
      decay="cosine",
      steps=1500,
    ),
    ema=0.0,
    sampler=dict(name="adaptive", steps=1, rtol=1e-5, atol=1e-5),
  )
  c.init_from = dict()
  c.data = dict(
    source="toy:moons", batch_size=256, image_size=0, flip=False, workers=0, timeout=600
  )
  c.train = dict(
    steps=1500, log_every=100, sample_every=0, eval_every=1500, eval_examples=2000,
    checkpoint_every=500, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), pixels=True, trace="hutchinson", rtol=1e-3, atol=1e-3)
    c.args.net_args = dict(M=8, hidden=8)
    c.args.sampler = dict(name="heun", steps=2)
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
