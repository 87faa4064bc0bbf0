"""The loop: an alarm, what feedback says of it, new training, the gate. Above the wings; it calls what their commands call."""
