r"""A training step and 50 steps of DDIM of DDPM's UNet and of DiT-S/2, ours and diffusers'.

.venv-parity/bin/python -m benchmarks.diffusion [--tasks=unet_train,dit_ddim] [--rounds=3]
    [--peers=eager,compile]

Ours is what a config trains: draws of noise, loss, gradient and Adam in one program; theirs is the
package's network with PyTorch's fused Adam, and its DDIMScheduler. Every side is a process of its
own, they take turns, and each says its parameters: diffusers' DiT has a class table in every block.
On a CPU all of them have one core and one thread, and what counts is the time of the process, so
that other work does not; on a GPU it is the wall clock, with bfloat16 on both sides. The share of
the peak is our floating-point operations, as XLA counts them, over those of a large product.
"""

import os
import pathlib
import runpy
import subprocess
import sys
import time

from absl import app, flags

CONFTEST = str(pathlib.Path(__file__).parents[1] / "tests/parity/conftest.py")
TASKS = ("unet_train", "unet_ddim", "dit_train", "dit_ddim")
SIDES = ("jaxgen", "eager", "compile")
CPU_ROWS = {"unet_train": 8, "unet_ddim": 1, "dit_train": 4, "dit_ddim": 1}
GPU_ROWS = {"unet_train": 256, "unet_ddim": 64, "dit_train": 256, "dit_ddim": 64}

ASKED = flags.DEFINE_list("tasks", list(TASKS), f"Of {', '.join(TASKS)}.")
PEERS = flags.DEFINE_list("peers", list(SIDES[1:]), f"Of {', '.join(SIDES[1:])}.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls of each side.", lower_bound=1)
SIDE = flags.DEFINE_enum("side", None, SIDES, "Set by this program for the processes it starts.")
GPU = flags.DEFINE_bool("gpu", False, "A GPU instead of one core.")


def ours(task, rows):
  """() -> None that has waited for the result, parameters, operations of a call, and the peak."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxgen import noise
  from jaxgen.core import method as method_lib
  from jaxgen.core import step

  name, kind = task.split("_")
  dtype = "bfloat16" if GPU.value else "float32"
  if name == "unet":
    net_args = dict(channels=128, multipliers=(1, 2, 2, 2), attention=(16,), dropout=0.0)
    method = method_lib.build("diffusion.ddpm", {
      "net_args": {**net_args, "dtype": dtype}, "tx": {"lr": 2e-4}, "ema": 0,
    })  # fmt: skip
    shape, label = (32, 32, 3), {}
  else:
    net_args = {"size": "S", "net_args": {"dtype": dtype}, "tx": {"lr": 1e-4}, "ema": 0}
    method = method_lib.build("diffusion.dit", net_args)
    shape, label = (32, 32, 4), {"label": jnp.zeros(rows, jnp.int32)}
  key = jax.random.key(0)
  state = jax.jit(lambda key: step.init_state(method, key))(key)
  n = sum(p.size for p in jax.tree.leaves(state.params))
  if kind == "train":
    image = np.random.default_rng(0).uniform(-1, 1, (rows, *shape)).astype(np.float32)
    batch = {k: v[None] for k, v in {"image": jnp.asarray(image), **label}.items()}
    train = jax.jit(lambda s, b, k: step.train_step(method, s, b, k), donate_argnums=0)
    program = train.lower(state, batch, key).compile()
    kept = [state]
    flops = program.cost_analysis()["flops"]

    def call():
      kept[0], metrics = program(kept[0], batch, key)
      jax.block_until_ready((kept[0], metrics))
  else:
    options = {"name": "ddim", "steps": 50}
    draw = jax.jit(lambda v, k: method.fns["sample"](v, noise.rows(k, rows), label, **options))
    program = draw.lower(state.vars, key).compile()
    forward = jax.jit(lambda v, x, t: method.fns["field"](v, label).predict(x, t))
    once = forward.lower(state.vars, jnp.zeros((rows, *shape)), jnp.ones(rows)).compile()
    flops = 50 * once.cost_analysis()["flops"]

    def call():
      jax.block_until_ready(program(state.vars, key))

  a = jnp.ones((8192 if GPU.value else 2048,) * 2, dtype)
  product = jax.jit(jnp.matmul)
  seconds = min(timed(lambda: product(a, a).block_until_ready()) for _ in range(5))
  return call, n, flops, 2 * a.shape[0] ** 3 / seconds


def theirs(task, rows, compiled):
  """The same of diffusers; operations and peak are not known here."""
  import torch

  runpy.run_path(CONFTEST)  # lets torchvision, which diffusers imports, be imported
  import diffusers

  torch.set_num_threads(1)
  name, kind = task.split("_")
  device = "cuda" if GPU.value else "cpu"
  if name == "unet":
    net = diffusers.UNet2DModel(
      block_out_channels=(128, 256, 256, 256),
      down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
      up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
      layers_per_block=2,
      norm_eps=1e-6,
      attention_head_dim=None,
      freq_shift=1,
      flip_sin_to_cos=False,
      downsample_padding=0,
    )
    shape, label = (3, 32, 32), {}
  else:
    net = diffusers.DiTTransformer2DModel(
      num_attention_heads=6, attention_head_dim=64, num_layers=12, out_channels=8
    )
    shape, label = (4, 32, 32), {"class_labels": torch.zeros(rows, dtype=torch.long, device=device)}
  net = net.to(device).train(kind == "train")
  n = sum(p.numel() for p in net.parameters())
  run = torch.compile(net) if compiled else net
  scheduler = diffusers.DDIMScheduler()
  mixed = torch.autocast("cuda", torch.bfloat16, enabled=GPU.value)
  if kind == "train":
    x = torch.rand(rows, *shape, device=device) * 2 - 1
    tx = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)

    def call():
      t, eps = torch.randint(1000, (rows,), device=device), torch.randn_like(x)
      tx.zero_grad(set_to_none=True)
      with mixed:
        out = run(scheduler.add_noise(x, eps, t), t, **label).sample[:, : shape[0]]
        loss = torch.mean((out - eps) ** 2)
      loss.backward()
      tx.step()
      wait()
  else:
    scheduler.set_timesteps(50)

    @torch.no_grad()
    def call():
      x = torch.randn(rows, *shape, device=device)
      for t in scheduler.timesteps:
        with mixed:
          out = run(x, t.expand(rows).to(device), **label).sample[:, : shape[0]]
        x = scheduler.step(out.float(), t, x).prev_sample
      wait()

  def wait():
    if GPU.value:
      torch.cuda.synchronize()

  return call, n, 0.0, 0.0


def timed(call):
  """Seconds of a call: of this process on a CPU, of the wall clock on a GPU."""
  clock = time.perf_counter if GPU.value else time.process_time
  since = clock()
  call()
  return clock() - since


def side():
  """Says how large the network is, then times a call for each line that it reads."""
  if not GPU.value:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  task = ASKED.value[0]
  rows = (GPU_ROWS if GPU.value else CPU_ROWS)[task]
  since = time.perf_counter()
  if SIDE.value == "jaxgen":
    call, *facts = ours(task, rows)
  else:
    call, *facts = theirs(task, rows, SIDE.value == "compile")
  call()
  print(*facts, time.perf_counter() - since, flush=True)
  for _ in sys.stdin:
    print(timed(call), flush=True)


def start(task, name):
  """A process that plays one side."""
  command = [sys.executable, "-m", "benchmarks.diffusion", f"--tasks={task}", f"--side={name}"]
  if GPU.value:
    command.append("--gpu")
  return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(_):
  if SIDE.value:
    return side()
  print("| task | side | parameters | s a call, min | median | ratio | of peak | s to the first |")
  print("| --- | --- | --- | --- | --- | --- | --- | --- |")
  for task in ASKED.value:
    children, facts, times = {}, {}, {}
    for name in ("jaxgen", *PEERS.value):
      children[name] = start(task, name)
      facts[name] = [float(word) for word in children[name].stdout.readline().split()]
      times[name] = []
    for _ in range(ROUNDS.value):
      for name, child in children.items():
        print(file=child.stdin, flush=True)
        times[name].append(float(child.stdout.readline()))
    for name, child in children.items():
      child.stdin.close()
      child.wait()
      n, flops, peak, first = facts[name]
      best, median = min(times[name]), sorted(times[name])[ROUNDS.value // 2]
      ratio = f"{best / min(times['jaxgen']):.2f}"
      share = f"{100 * flops / best / peak:.0f} %" if peak else ""
      cells = [
        task,
        name,
        f"{n:,.0f}",
        f"{best:.3f}",
        f"{median:.3f}",
        ratio,
        share,
        f"{first:.0f}",
      ]
      print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
