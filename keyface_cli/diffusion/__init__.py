"""The diffusion method as functions of callables: preconditioning, schedules, sampling, guidance."""
