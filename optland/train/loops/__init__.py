"""What a training loop is made of: loaders, precision, schedules, averages, evaluation, ranks."""
