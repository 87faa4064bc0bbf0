"""The prediction log's promises, tried: real servers, a store, a network that fails, and kills at random moments."""
