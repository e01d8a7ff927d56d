"""One subject fitted from pixels to vertebrae: `subject.fit_subject`, and how sure it is: `uncertainty`."""
