import os

import processes

os.environ["XLA_FLAGS"] = f"{processes.FLAGS} --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from jaxgen.core import parallel

parallel.start()  # the compilation cache of the launchers: a second run of the tests is much faster
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")  # t [B] times x [B, D] is never a broadcast
jax.config.update("jax_debug_key_reuse", True)  # a key used twice is an error
