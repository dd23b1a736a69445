"""Result cards: written, shown, compared."""
