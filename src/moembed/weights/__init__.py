"""Operations on weights: pure functions (config, state) -> (config, state), so they compose."""
