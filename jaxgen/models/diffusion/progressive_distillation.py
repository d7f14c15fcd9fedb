"""Progressive Distillation for Fast Sampling of Diffusion Models. Salimans & Ho, 2022.

arXiv:2202.00512.

Survey D06, Eq. 89.

A v-prediction model in continuous time, sampled by DDIM; then students of half as many steps each,
which start as their teachers (experiments/distill.py). Deviations: v, which the paper also has, in
place of x on CIFAR-10; ADM's layers in place of its code's UNet; classes, with labels dropped for
classifier-free guidance (arXiv:2207.12598).
"""

import jax
import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import change_of_variables, distillation
from jaxgen.samplers import guidance


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="ADM",
  net_args={
    "channels": 256, "multipliers": (1, 1, 1), "n_res_blocks": 3, "attention": (16, 8),
    "head_channels": 0, "heads": 1, "dropout": 0.2,
  },
  steps=0,
  tx={"lr": 2e-4, "warmup": 1000, "weight_decay": 1e-3, "clip": 1.0},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "ddim", "steps": 1024},
  guidance_weight=0.0,
  ode_steps=100,
):  # fmt: skip
  """The Method; the defaults are those of the first teacher of the paper's CIFAR-10 run.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`. A student has no dropout.
    steps: 0 trains on data; N > 0 distills the network frozen under "teacher", which takes 2N DDIM
      steps, to N. `init_from` gives "net" and "teacher/net" the network of an earlier run.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options; a student's is DDIM with its own steps.
    guidance_weight: w; 0 does not guide.
    ode_steps: of Heun's method in log_prob, which students do not have.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check_count("steps", steps, 0)
  method.check_count("ode_steps", ode_steps)
  path = paths.Cosine()
  samplers.check(path, sampler)
  sampler = {"name": "ddim", "steps": steps} if steps else sampler
  init_net, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def init(key):
    vars = init_net(key)
    if not steps:
      return vars
    teacher = jax.tree.map(jnp.copy, vars)  # the student starts as its teacher
    extra = {**vars.extra, "teacher": teacher.extra} if vars.extra else {}
    return Vars({**vars.params, "teacher": teacher.params}, extra)

  def v_fn(vars, label=None, draw=None):
    # The network's time embedding is made for 0 to 1000.
    return lambda x_t, t: apply_net(vars, x_t, 1000.0 * t, label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    x = batch["image"]
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    if not steps:
      fn = v_fn(vars, label, noise.stream(k_dropout))
      return distillation.v_prediction(fn, x, k_loss, path=path).mean(), Aux()
    student, teacher = (
      paths.v_field(path, v_fn(v, label)) for v in (vars, method.inner(vars, "teacher"))
    )
    return distillation.progressive(student, teacher, x, k_loss, steps=steps).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}."""
    of = lambda label: paths.v_field(path, v_fn(vars, label))
    return guidance.of_labels(of, cond, n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. cond, w: of `field`; a `name` in options replaces `sampler`.

    x is clipped to [-1, 1] at every step, as the paper's sampler does.
    """
    clipped = guidance.clipped(field(vars, cond, w=w))
    return {"image": samplers.draw(clipped, keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.

    That of the probability flow, with one draw of dequantization and trace an example, both
    unbiased; Heun's steps crowd at the data, where the density is steep.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    fn = field(vars, cond, w=0.0).velocity
    return change_of_variables.flow_log_prob(fn, batch["image"], keys, path, ode_steps)

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, **({} if steps else {"log_prob": log_prob})},
    serves=("net",),
  )
