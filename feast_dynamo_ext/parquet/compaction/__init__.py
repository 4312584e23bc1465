"""Small files of a source made into sorted, sized ones."""
