"""Who acts in environments: units of experience, evaluation, videos."""
