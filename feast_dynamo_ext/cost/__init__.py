"""What AWS charges: prices with their date and source, sizes, estimates."""
