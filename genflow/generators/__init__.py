"""The inference part of methods: noise and a condition in, samples out."""
