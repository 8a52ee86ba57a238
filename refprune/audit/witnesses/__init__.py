"""What witnesses share: small networks, flows of the dynamics, counting in integers, arithmetic of 50 digits."""
