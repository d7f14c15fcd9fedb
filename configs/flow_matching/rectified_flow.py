r"""Rectified flow, arXiv:2209.03003 (R02), and how to reflow once, arXiv:2405.20320 (R04).

python -m experiments.train --config=configs/flow_matching/rectified_flow.py:cifar10 --workdir=runs
python -m experiments.reflow --config=configs/flow_matching/rectified_flow.py:mnist16_reflow
    --teacher=runs/rectified_flow_mnist16 --n=20000 --workdir=runs/reflow_mnist16
Paper: CIFAR-10, Table 1, FID: 1-rectified flow 2.58 (RK45, 127 evaluations), one step distilled
6.18; 2-rectified flow 3.36, one step distilled 4.85. R04, CIFAR-10: FID 3.07 in one step, 2.40 in
two. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = (
  "cifar10", "cifar10_reflow", "cifar10_improved", "mnist16", "mnist16_reflow", "mnist16_improved",
  "mnist16_distilled", "omniglot_mnist16", "moons", "moons_reflow", "smoke",
)  # fmt: skip


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.rectified_flow"  # jaxgen/models/flow_matching/rectified_flow.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.1,
    net="NCSNpp",
    net_args=dict(
      channels=128,
      multipliers=(1, 2, 2, 2),
      n_res_blocks=4,
      attention=(16,),
      embedding="positional",
      noise_multiplier=1,
      encoder="standard",
      decoder="standard",
      resample_filter=(1, 1),
      dropout=0.15,
      augment=0,
      dtype="float32",
    ),
    start="noise",
    coupling="independent",
    steps=0,
    times="uniform",
    times_args=dict(),
    distance="squared",
    distance_args=dict(),
    tx=dict(
      lr=2e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0, warmup=5000, decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.999999),
    sampler=dict(name="adaptive", steps=1, rtol=1e-5, atol=1e-5),
    accumulate=1,
    guidance_weight=0.0,
    ode_steps=100,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=128, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=600_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  reflows = variant.endswith(("_reflow", "_improved", "_distilled"))
  if reflows:  # experiments.reflow names the data, the start of the network and its image_size
    c.args.coupling = "given"
    c.data.flip, c.train.eval_every = False, 0
  if variant.endswith("_improved"):  # arXiv:2405.20320
    c.args.times, c.args.times_args = "u_shaped", dict(a=4.0)
    c.args.distance, c.args.distance_args = "pseudo_huber", dict(c=0.00054)
  if variant == "cifar10_reflow":
    c.train.steps = 300_000
  if variant == "cifar10_improved":
    c.args.distance, c.args.distance_args = "lpips_huber", dict(c=0.00054, inverse=True)
    c.args.ema.decay, c.args.tx.clip, c.data.batch_size, c.train.steps = 0.9999, 0.0, 512, 800_000
    c.init_from = dict(lpips="weights/lpips.safetensors")
  if variant.startswith("cifar10"):
    return c

  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100)
  c.args.sampler = dict(name="heun", steps=25)
  c.args.ode_steps = 50
  c.data.flip, c.data.workers = False, 0
  if "mnist16" in variant:  # the 0.7M parameters of flow_matching.py:mnist16, and ten classes
    c.args.update(image_shape=(16, 16, 1), n_classes=10, net="UNet")
    c.args.net_args = dict(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0,
      dtype="float32",
    )  # fmt: skip
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(steps=2000, sample_every=500, eval_examples=500, checkpoint_every=500)
    c.train.eval_every = 0 if reflows else 2000
    if reflows:
      c.args.label_dropout, c.args.tx.lr, c.train.steps = 0.0, 3e-4, 1500
    if variant == "mnist16_distilled":
      c.args.update(steps=1, sampler=dict(name="euler", steps=1))
      c.train.steps = 1000
    if variant == "omniglot_mnist16":
      c.args.update(n_classes=0, start="data")
      c.data.source = "pair:npz:data/omniglot->npz:data/mnist"
      c.train.eval_every = 0
  elif variant in ("moons", "moons_reflow"):
    c.args.update(image_shape=(1, 1, 2), net="ResidualMLP", start="data")
    c.args.net_args = dict(width=128, depth=3, dtype="float32")
    c.data.update(source="pair:toy:gaussians8->toy:moons", batch_size=256)
    c.train.update(steps=3000, sample_every=0, eval_every=0, checkpoint_every=1000)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), n_classes=10, net="ResidualMLP", sampler=dict(name="heun", steps=2),
      ode_steps=2,
    )  # fmt: skip
    c.args.net_args = dict(width=32, depth=1, dtype="float32")
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
