"""Operations on weights: pure functions (spec, state) -> (spec, state), so they compose."""
