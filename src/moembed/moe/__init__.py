"""The Mixture-of-Experts block: router, experts, and the backends that compute them."""
