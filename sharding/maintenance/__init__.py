"""What keeps the store whole while clients work: jobs of bounded steps, and the runner that paces them."""
