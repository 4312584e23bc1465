"""Entity rows, from every form that `get_historical_features` takes."""
