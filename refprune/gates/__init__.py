"""What happens to a gate: estimators of ∂C/∂θ, the pull on θ, the rules of removal, surgery."""
