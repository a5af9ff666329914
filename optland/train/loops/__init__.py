"""Parts of a training loop: loaders, precision, schedules, averages, evaluation, ranks."""
