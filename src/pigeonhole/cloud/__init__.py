"""Google Cloud: names, deployments and jobs. Knows nothing of models; a laptop without an account never imports it."""
