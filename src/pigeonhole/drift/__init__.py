"""The drift wing: does the traffic still look like the held-out rows that the live bundle was measured on? No torch, no Hydra."""
