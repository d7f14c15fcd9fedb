"""ADM: Diffusion Models Beat GANs on Image Synthesis. Dhariwal and Nichol, 2021. arXiv:2105.05233.

Survey D09, Eq. 90-91.

Improved DDPM (arXiv:2102.09672) with a better UNet, `nn.adm.ADM`, guided by the gradients of a
classifier of noisy images, `representation.noisy_classifier`: a run of its own, whose networks stay
here as they are under the one name "classifier".
"""

import jax

from jaxgen import samplers
from jaxgen.core import method
from jaxgen.core.method import Vars
from jaxgen.models.diffusion import improved_ddpm
from jaxgen.samplers import guidance


def build(
  *,
  image_shape=(64, 64, 3),
  n_classes=1000,
  label_dropout=0.0,
  net="ADM",
  net_args={
    "channels": 192, "multipliers": (1, 2, 3, 4), "n_res_blocks": 3, "attention": (32, 16, 8),
    "head_channels": 64, "dropout": 0.1,
  },
  schedule="cosine",
  T=1000,
  vlb_weight=1e-3,
  tx={"lr": 3e-4},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "ancestral", "steps": 250, "grid": "spaced"},
  guidance_weight=0.0,
  bound_terms=1000,
  classifier={"model": "representation.noisy_classifier", "args": {}},
  classifier_scale=1.0,
):  # fmt: skip
  """The Method; the defaults are the paper's ImageNet 64x64 model, with its classifier.

  Args:
    image_shape, n_classes, label_dropout, net, net_args, schedule, T, vlb_weight, tx, ema,
      accumulate, sampler, guidance_weight, bound_terms: of `improved_ddpm.build`. With n_classes=0
      labels guide all the same, where there is a classifier.
    classifier: {"model", "args"} of a method that detects labels in noisy batches, whose args have
      this image_shape, schedule and T, and n_classes unless it says how many; {} for none.
    classifier_scale: s of arXiv:2105.05233, Alg. 1 and 2; 0 does not guide.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  base = improved_ddpm.build(
    image_shape=image_shape, n_classes=n_classes, label_dropout=label_dropout, net=net,
    net_args=net_args, schedule=schedule, T=T, T_net=T, vlb_weight=vlb_weight, tx=tx, ema=ema,
    accumulate=accumulate, sampler=sampler, guidance_weight=guidance_weight,
    bound_terms=bound_terms,
  )  # fmt: skip
  method.check_weight("classifier_scale", classifier_scale)
  n_labels, detect = n_classes, None
  if classifier:
    shared = {"image_shape": tuple(image_shape), "schedule": schedule, "T": T}
    n_labels, made = _classifier(classifier, n_classes, shared)
    detect = made.fns["detect"]

  def init(key):
    if not classifier:
      return base.init(key)
    k_net, k_classifier = jax.random.split(key)
    (params, extra), inner = base.init(k_net), made.init(k_classifier)
    kept = {"classifier": inner.extra} if inner.extra else {}
    return Vars({**params, "classifier": inner.params}, {**extra, **kept})

  def label_log_prob(vars, label):
    inner = method.inner(vars, "classifier")
    return guidance.label_log_prob(
      lambda x_t, t: detect(inner, {"image": x_t}, t=t)["logits"], label
    )

  def unguided(vars, cond, w, scale):
    method.check_cond(cond, n_labels, w)
    method.check_weight("scale", scale)
    return base.fns["field"](vars, cond if n_classes else {}, w=w)

  def field(vars, cond={}, *, w=guidance_weight, scale=classifier_scale):
    """cond: {"label": int32 [n]}, or {}. x is clipped to [-1, 1], then guided by the classifier.

    w: weight of classifier-free guidance, scale: of the classifier's, two scalars.
    """
    of = unguided(vars, cond, w, scale)
    if not (classifier and cond and scale):
      return of
    return guidance.classifier(of, label_log_prob(vars, cond["label"]), scale)  # Alg. 2

  def sample(vars, keys, cond={}, *, w=guidance_weight, scale=classifier_scale, **options):
    """{"image": [n, *image_shape]}, about or, without guidance, in [-1, 1].

    cond, w, scale: of `field`, which samplers follow, but for "ancestral", which takes
    arXiv:2105.05233, Alg. 1. A `name` in options replaces `sampler`.
    """
    guided, draw = classifier and cond and scale, (keys, image_shape, sampler)
    if not guided or options.get("name", sampler["name"]) != "ancestral":
      return {"image": samplers.draw(field(vars, cond, w=w, scale=scale), *draw, **options)}
    gradient = guidance.gradient(label_log_prob(vars, cond["label"]))
    guide = lambda x_t, t: scale * gradient(x_t, t)
    return {"image": samplers.draw(unguided(vars, cond, w, scale), *draw, guide=guide, **options)}

  return base._replace(init=init, fns={**base.fns, "sample": sample, "field": field})


def _classifier(config, n_classes, shared):
  """(number of its labels, Method) of the classifier that a config asks for."""
  method.check("classifier", config, set(config) == {"model", "args"}, "{} or model and args")
  model, args = config["model"], dict(config["args"])
  for name, value in shared.items():
    given = tuple(args[name]) if name == "image_shape" and name in args else args.get(name, value)
    method.check(f"classifier.args.{name}", given, given == value, f"{value!r}, as here")
  args = {**shared, "n_classes": n_classes, **args}
  made = method.build(model, args)
  method.check("classifier.model", model, "detect" in made.fns, "a model that detects")
  return args["n_classes"], made
