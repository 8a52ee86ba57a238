"""Other implementations beside refprune: adapters that import a framework, and are themselves imported only on use."""
