package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/circuitseal/circuitseal/controller/model"
)

var errNoSpec = errors.New("there is none")

func encode(w io.Writer, s model.Spec) error {
	if s == nil {
		return errNoSpec
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(s)
}

func decode(b []byte, s model.Spec) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return err
	}
	switch _, err := d.Token(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return errors.New("there is more after the end")
}
