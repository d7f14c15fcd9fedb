"""Noise belongs to the example: not to its batch, its device or its neighbours."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen import noise
from jaxgen.core import axis, parallel, step
from jaxgen.core.method import Aux, Method, Phase, Vars

KEY = jax.random.key(3)
DRAWS = {
  "normal": lambda k: noise.normal(k, (3,)),
  "uniform": lambda k: noise.uniform(k, (3,), -1.0, 2.0),
  "randint": lambda k: noise.randint(k, 0, 10, (3,)),
  "bernoulli": lambda k: noise.bernoulli(k, 0.3, (3,)),
  "rademacher": lambda k: noise.rademacher(k, (3,)),
  "split": lambda k: noise.normal(noise.split(k, 3)[1], (3,)),
  "fold_in": lambda k: noise.normal(noise.fold_in(k, 7), (3,)),
  "stream": lambda k: noise.stream(k)((3,)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_row_draws_the_same_alone_and_in_any_batch(draw):
  whole = draw(noise.rows(KEY, 8))
  np.testing.assert_array_equal(draw(noise.rows(KEY, 2, first=5)), whole[5:7])
  np.testing.assert_array_equal(draw(noise.rows(KEY, 1, first=3))[0], whole[3])


def draws(devices):
  """What eight rows draw on these devices, by jit with keys split over them and by shard_map."""
  mesh, n = Mesh(np.asarray(devices), (axis.NAME,)), 8 // len(devices)
  by_rows = NamedSharding(mesh, P(axis.NAME))
  every = lambda keys: {name: draw(jax.random.clone(keys)) for name, draw in DRAWS.items()}
  keys = jax.jit(lambda key: noise.rows(key, 8), out_shardings=by_rows)(KEY)
  local = lambda key: every(noise.rows(key, n, axis.first_row(n)))
  spread = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(axis.NAME), check_vma=False)
  both = jax.jit(every, out_shardings=by_rows)(keys), jax.jit(spread)(KEY)
  return [{k: np.asarray(parallel.whole(x)).tolist() for k, x in found.items()} for found in both]


def in_children(hosts, devices, sizes):
  """`draws` of each host, on its first so many devices for each of the sizes."""
  call = f"[t.draws(parallel.mesh().devices[:n]) for n in {sizes}]"
  body = f"import json, test_noise as t\nprint('draws', json.dumps({call}))"
  texts = processes.run(body, hosts, devices)
  return [json.loads(text.split("draws ")[-1].splitlines()[0]) for text in texts]


def test_draws_do_not_depend_on_the_topology():
  """Acceptance test 20: 1, 2 and 8 devices, two hosts with two, by jit and by shard_map."""
  one = draws(jax.devices()[:1])[0]
  assert in_children(1, 8, [1, 2, 8]) == [[[one, one]] * 3]
  assert in_children(2, 2, [4]) == [[[one, one]]] * 2


def test_the_shared_key_is_the_same_on_every_device_and_no_rows():
  def local(key):
    keys = noise.rows(key, 2, axis.first_row(2))
    return jax.random.key_data(noise.shared(keys))[None]

  spread = jax.shard_map(
    local, mesh=parallel.mesh(), in_specs=P(), out_specs=P(axis.NAME), check_vma=False
  )
  data = np.asarray(jax.jit(spread)(KEY))
  assert (data == data[0]).all()
  one = jax.random.key_data(noise.shared(noise.rows(KEY, 8)))
  np.testing.assert_array_equal(data[0], one)
  rows = {tuple(k) for k in np.asarray(jax.random.key_data(noise.rows(KEY, 100)))}
  assert tuple(np.asarray(one)) not in rows


def test_no_two_examples_or_steps_share_noise():
  """Acceptance test 20: 10^4 rows of 100 steps, and those of a run's other keys, are different."""
  calls, rows = 5, 20  # two updates on two micro-batches each, and another phase

  def loss(vars, batch, keys):
    seen = jnp.concatenate([vars.extra["seen"][1:], jax.random.key_data(keys)[None]])
    return jnp.sum(vars.params["net"] ** 2), Aux(extra={"seen": seen})

  init = lambda key: Vars({"net": jnp.zeros(2)}, {"seen": jnp.zeros((calls, rows, 2), jnp.uint32)})
  tx = optax.sgd(0.1)
  phases = {"a": Phase(loss, ("net",), tx, repeats=2, accumulate=2), "b": Phase(loss, ("net",), tx)}
  method = Method(init, phases)
  k_init, k_calibrate, k_step, k_sample, k_eval = jax.random.split(jax.random.key(0), 5)
  state, batch = step.init_state(method, KEY), {"x": jnp.zeros((4, rows, 1))}
  take = jax.jit(lambda state: step.train_step(method, state, batch, k_step)[0])
  seen = []
  for _ in range(100):
    state = take(state)
    seen.append(np.asarray(state.extra["seen"]).reshape(-1, 2))
  assert sum(map(len, seen)) == 10_000
  others = [noise.rows(k, 1000) for k in (k_calibrate, k_sample, k_eval)]
  others += [jax.random.split(k_init, 100), *noise.split(noise.rows(KEY, 1000), 4)]
  others += [noise.fold_in(noise.rows(KEY, 1000), i) for i in range(5)]
  data = np.concatenate([*seen, *map(jax.random.key_data, others)])
  assert len(np.unique(data, axis=0)) == len(data) == 22_100


def test_a_stream_draws_new_noise_at_every_call():
  draw = noise.stream(noise.rows(KEY, 4))
  assert not jnp.array_equal(draw((3,)), draw((3,)))


def test_moments():
  keys = noise.rows(KEY, 4000)
  np.testing.assert_allclose(noise.normal(keys, (5,)).std(), 1.0, atol=0.02)
  np.testing.assert_allclose(noise.rademacher(noise.fold_in(keys, 1), (5,)).mean(), 0.0, atol=0.03)
  np.testing.assert_allclose(noise.bernoulli(noise.fold_in(keys, 2), 0.3).mean(), 0.3, atol=0.03)
  u = noise.uniform(noise.fold_in(keys, 3), (5,), -1.0, 2.0)
  assert -1.0 <= u.min() < -0.99 and 1.99 < u.max() < 2.0
  assert set(np.unique(noise.randint(noise.fold_in(keys, 4), 2, 5))) == {2, 3, 4}
