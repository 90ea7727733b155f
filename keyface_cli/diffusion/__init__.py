"""The diffusion method, functions of callables: preconditioning, schedule, sampler, guidance."""
