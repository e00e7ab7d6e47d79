"""What `unrain help TOPIC` says of what is no command."""

TOPICS = {
    "formats": """Formats of pictures

read and written   JPEG, PNG, WebP, TIFF, BMP, AVIF; TIFFs of several pages, page by page
only read          HEIC and HEIF: the result is a JPEG, or what -o names (-o photo.avif)
with an extra      JPEG XL (pip install 'unrain[jxl]'), read and written;
                   cameras' RAW files (pip install 'unrain[raw]'): developed with the camera's white balance,
                   the result is a TIFF of 16 bits
animated           GIF, WebP, PNG: derained like videos, and come back as what they were

A result has the format of its input unless -o names a file with another extension. Alpha, 16 bits, EXIF, XMP
and ICC profiles are kept as far as the format holds them; -v says what it does not hold.""",
    "videos": """Videos (pip install 'unrain[video]')

unrain clip.mp4                           writes clip_derained.mp4
unrain clip.mp4 --start 1:30 --duration 10
unrain clip.mp4 -o clear.mkv --codec hevc --crf 20

read and written   MP4, M4V, MOV, MKV, WebM
only read          AVI, TS, MTS, M2TS, MPG, MPEG, VOB, WMV, ASF, FLV, 3GP, 3G2, OGV: the result is an MKV
codecs             h264 (vp9 in WebM), hevc, vp9, av1

Sound, subtitles, chapters, times and rotation are kept. Ctrl-C finishes the file with what is done.""",
    "rain-score": """Does it rain in a picture?

unrain score photo.jpg holiday/           the score, 0 to 100, and what is made of it
unrain score holiday/ --csv > rain.csv
unrain score clip.mp4                     and when it rains most
unrain holiday/ -o out/ --only-rainy      derains only what is of rain; --only-rainy 70 asks for more
unrain holiday/ -o out/ --only-rainy --others copy

The score is how likely it rains in the picture, in percent. It knows rain by streaks, splashes and haze: a
wet street alone is often clear to it, and snow or spray may be taken for rain.""",
    "large": """Large pictures

A picture whose long side is well above 800 pixels is halved until it is close to that, derained there, and
again at each larger size where that pays; what is found is subtracted from the picture at full size. -v says
at which sizes. --levels 1 works at full size only: slower, and right for fine rain in large pictures. --tile
makes tiles smaller where memory is short.""",
    "exit-codes": """Exit codes

0    all well; results that were there already, and were skipped, included
1    something failed: each is named, the rest of a folder is done
2    the command itself is wrong; nothing was done
130  interrupted (Ctrl-C)
141  whoever read standard output went away
143  terminated""",
}
"""The text of each topic by its name."""
