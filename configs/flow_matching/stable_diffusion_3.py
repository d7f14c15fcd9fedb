r"""Stable Diffusion 3, arXiv:2403.03206.

python -m experiments.train --config=configs/flow_matching/stable_diffusion_3.py:latents1024
    --workdir=runs/sd3
Paper: depth 24, 512x512, Table 5: GenEval 0.62 (0.68 at depth 38). Ours: RESULTS.md.

latents1024 trains on a folder of train.npz, or train.array_record, with `image`, float32
[128, 128, 16], the autoencoder's means minus 0.0609, times 1.5305; `context`, float32 [154, 4096],
77 tokens of CLIP L/14 and G/14 side by side and filled up with zeros, then 77 of T5; and
`embedding`, float32 [2048], what the two CLIPs say of the whole. Samples are given the texts of a
test split of the same form.
"""

import ml_collections

VARIANTS = ("latents1024", "mnist16", "smoke")


def get_config(variant="latents1024"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.stable_diffusion_3"  # jaxgen/models/flow_matching/stable_diffusion_3.py
  c.args = dict(  # keywords of its build()
    image_shape=(128, 128, 16),
    context_shape=(154, 4096),
    embedding_size=2048,
    encoders=(
      ((0, 77), (0, 768), (0, 768)),
      ((0, 77), (768, 2048), (768, 2048)),
      ((77, 154), (0, 4096), (0, 0)),
    ),
    text_dropout=0.464,
    n_classes=0,
    net_args=dict(
      depth=24,
      patch_size=2,
      qk_norm="",
      pos_embed_max_size=192,
      pos_embed_base_size=64,
      dtype="float32",
    ),
    times="logit_normal",
    times_args=dict(),
    shift=3.0,
    tx=dict(
      lr=1e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=1000,
      decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(name="euler", steps=50, grid=dict(name="shifted", shift=3.0)),
    accumulate=1,
    guidance_weight=4.0,
    pixels=False,
    ode_steps=100,
  )
  c.init_from = dict()
  c.data = dict(
    source="npz:data/sd3_latents1024", batch_size=4096, image_size=0, flip=False, workers=2,
    timeout=600,
  )  # fmt: skip
  c.train = dict(
    steps=500_000, log_every=100, sample_every=0, eval_every=0, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "latents1024":
    return c

  c.args.update(n_classes=10, encoders=(), text_dropout=0.1, shift=1.0, pixels=True)
  c.args.update(context_shape=(4, 32), embedding_size=32, guidance_weight=0.0, ode_steps=50)
  c.args.net_args.update(qk_norm="rms", pos_embed_max_size=8, pos_embed_base_size=8)
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100, clip=1.0)
  c.args.sampler = dict(name="euler", steps=28, grid=dict(name="shifted", shift=1.0))
  c.data.workers = 0
  if variant == "mnist16":
    c.args.image_shape = (16, 16, 1)
    c.args.net_args.depth = 2
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=1500, sample_every=500, eval_every=1500, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), context_shape=(2, 8), embedding_size=8, ode_steps=2)
    c.args.net_args.update(depth=1, patch_size=4)
    c.args.sampler.steps, c.args.tx.warmup = 2, 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
