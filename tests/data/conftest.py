"""Small downloads of published data sets, byte for byte in the formats of their owners."""

# ruff: noqa: E501

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

RAW: dict[str, dict[str, bytes]] = {
    "ml-1m": {
        "ratings.dat": b"1::1193::5::978300760\n1::661::3::978302109\n2::1193::1::978298413\n",
        "movies.dat": (
            "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
            "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
            '73::Misérables, "Les" (1995)::Drama|Musical\n'
        ).encode("latin-1"),
        "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072-1234\n",
    },
    "ml-10M100K": {
        "ratings.dat": b"1::122::5::838985046\n1::185::4.5::838983525\n3::122::0.5::1136075500\n",
        "movies.dat": (
            "122::Boomerang (1992)::Comedy|Romance\n185::Amélie (2001)::Comedy\n"
            "8606::Pull My Daisy (1958)::(no genres listed)\n"
        ).encode(),
        "tags.dat": (
            b'b::122::"so so::1188263867\n15::185::french::1188263868\n16::185:: French::1188263869\n16::185::art::1\n'
        ),
    },
    "ml-latest-small": {
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n1,1029,3.0,1260759179\r\n7,31,5,2\n",
        "movies.csv": (
            "movieId,title,genres\r\n31,Dangerous Minds (1995),Drama\r\n"
            '1029,"Good, the Bad and the Ügly, The (1966)",Action|Western\r\n'
            '99,"The ""Untitled""",(no genres listed)\r\n'
        ).encode(),
        "tags.csv": (
            b"userId,movieId,tag,timestamp\r\n15,31,teacher,1\r\n15,31,\"based on, a book\",2\r\n16,31,TEACHER,3\r\n"
            b"15,31, ,4\r\n15,4,not there,5\r\n"
        ),
        "links.csv": b"movieId,imdbId,tmdbId\r\n31,0112792,9909\r\n",
    },
    "book-crossing": {
        "BX-Book-Ratings.csv": (
            b'"User-ID";"ISBN";"Book-Rating"\r\n"276725";"034545104X";"0"\r\n"276726";"0155061224";"5"\r\n'
            b'"276726";"034545104X";"9"\r\n"4";"\\"0432534220\\"";"6"\r\n'
        ),
        "BX-Books.csv": (
            '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";'
            '"Image-URL-L"\r\n"034545104X";"Flesh Tones: A Novel";"M. J. Rose";"2002";"Ballantine &amp; Sons";"s";"m";"l"\r\n'
            '"0155061224";"Der KÃ?Â¶nig; \\"StÃ¼ck\\" fÃ¼r Ã?Â?";"é, É";"0";"Diogenes";"s";"m";"l"\r\n'
        ).encode("latin-1"),
        "BX-Users.csv": (
            '"User-ID";"Location";"Age"\r\n"276725";"tyler, texas, usa";NULL\r\n'
            '"276726";"münchen, \\"n/a\\", germany";"18"\r\n"4";"cernusco s\r\n, milan, ";"244"\r\n'
        ).encode("latin-1"),
    },
    "amazon-2018": {
        "Gift_Cards_5.json.gz": gzip.compress(
            b'{"overall": 5.0, "verified": true, "reviewTime": "06 17, 2018", "reviewerID": "A31UBHTUUIFJUT", "asin": '
            b'"B004LLIKVU", "style": {"Gift Amount:": " 50"}, "reviewerName": "john", "reviewText": "Another &amp; <b>", '
            b'"summary": "Five Stars", "unixReviewTime": 1529193600}\n'
            b'{"overall": 1.0, "vote": "2", "verified": false, "reviewTime": "06 14, 2018", "reviewerID": "A2MN", "asin": '
            b'"0001", "style": null, "summary": "2018-01-01", "unixReviewTime": 1528934400, "image": ["x"]}\n'
        ),
        "meta_Gift_Cards.json.gz": gzip.compress(
            b'{"category": ["Gift Cards", "Clothing, Shoes &amp; Jewelry"], "description": ["<div class=\\"aplus\\"> '
            b'<br>Cards<br/>for <a href=\\"x\\">you</a>.<script>var a = 1;</script>", "", "1 < 2 &amp;amp; 3"], "title": '
            b'" Maggiano&#39;s\\n Gift Card", "feature": [], "brand": "", "rank": [], "price": "$1,250.00", "asin": '
            b'"B004LLIKVU"}\n'
            b'{"category": [], "description": [], "title": "var aPageStart = (new Date()).getTime();", "brand": "B", '
            b'"rank": "2,937,739 in Books (", "price": ".a-box-inner{background-color:#fff}", "asin": "B2"}\n'
            b'{"category": [], "description": [], "title": "A second", "price": "$5.00 - $7.00", "asin": "B004LLIKVU"}\n'
            b'{"category": [], "description": [], "title": "A third", "price": "$5.00 - $7.00", "asin": "B3"}\n'
        ),
    },
    "amazon-2023": {
        "All_Beauty.jsonl": (
            b'{"rating": 5.0, "title": "Such a lovely scent", "text": "This spray<br />is nice.", "images": [], "asin": '
            b'"B00YQ6X8EO", "parent_asin": "B00YQ6X8EP", "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": '
            b'1588687728923, "helpful_vote": 0, "verified_purchase": true}\n'
            b'{"rating": 2.0, "title": "No", "text": "", "images": [{"hi_res": "x"}], "asin": "B3", "parent_asin": "B3", '
            b'"user_id": "AG", "timestamp": 1588687728000, "helpful_vote": 0, "verified_purchase": false}\n'
        ),
        "meta_All_Beauty.jsonl": (
            b'{"main_category": "All Beauty", "title": "Howard LC0008 &amp; Co", "average_rating": 4.8, "rating_number": 10, '
            b'"features": ["Good", "Cheap"], "description": [], "price": 12.5, "images": [], "videos": [], "store": '
            b'"Howard Products", "categories": [], "details": {"UPC": "1"}, "parent_asin": "B00YQ6X8EP", '
            b'"bought_together": null}\n'
            b'{"main_category": null, "title": "Comb", "average_rating": 4, "rating_number": 1, "features": [], '
            b'"description": ["A comb"], "price": null, "images": [], "store": null, "categories": ["Hair", "Combs"], '
            b'"details": {}, "parent_asin": "B3", "bought_together": null}\n'
        ),
    },
    "MINDsmall": {
        "MINDsmall_train/behaviors.tsv": (
            b"1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
            b"2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-0 N55689-0\n"
            b"3\tU13740\t11/14/2019 12:00:00 AM\tN55189 N42782 N55689\tN35729-1\n"
            b"4\tU91836\t11/11/2019 11:59:59 PM\tN1\tN35729-1\n"
        ),
        "MINDsmall_train/news.tsv": (
            'N55689\tsports\tfootball_nfl\tCharles Rogers, "former NFL player\tAn abstract — "quoted"\thttps://x/AA.html'
            '\t[{"Label": "Charles Rogers", "Type": "P", "WikidataId": "Q1", "Confidence": 1.0, "OccurrenceOffsets": [0], '
            '"SurfaceForms": ["Charles Rogers"]}]\t[{"Label": "NFL"}, {"Label": "Charles Rogers"}]\n'
            "N35729\tnews\tnewsus\tPorsche launches\t\thttps://x/BB.html\t[]\t[]\n"
            "N20678\tsports\tmore\tRock 'n' roll\ta\thttps://x/CC.html\t[]\t\n"
        ).encode(),
        "MINDsmall_dev/behaviors.tsv": (
            b"1\tU80234\t11/15/2019 12:37:50 PM\tN20678\tN28682-0 N35729-1\n"
            b"2\tU13740\t11/15/2019 7:11:50 AM\tN55189 N42782 N55689 N35729\tN28682-1\n"
        ),
        "MINDsmall_dev/news.tsv": (
            b"N28682\tnews\tnewsworld\tNew news\tb\thttps://x/DD.html\t[]\t[]\n"
            b"N35729\tnews\tnewsus\tPorsche again\t\thttps://x/BB.html\t[]\t[]\n"
        ),
    },
    "hetrec2011-lastfm-2k": {
        "artists.dat": (
            "id\tname\turl\tpictureURL\r\n51\tDuran Duran\thttp://www.last.fm/music/Duran+Duran\thttp://x/1.jpg\r\n"
            '52\tBjörk "live\thttp://www.last.fm/music/Bj%C3%B6rk\t\r\n'
        ).encode(),
        "user_artists.dat": b"userID\tartistID\tweight\r\n2\t51\t13883\r\n2\t52\t11690\r\n3\t52\t1\r\n",
        "tags.dat": "tagID\ttagValue\r\n1\tmetal\r\n2\tfrançais\r\n3\tNew Wave\r\n".encode("latin-1"),
        "user_taggedartists.dat": (
            b"userID\tartistID\ttagID\tday\tmonth\tyear\r\n2\t52\t1\t1\t4\t2009\r\n2\t52\t2\t1\t4\t2009\r\n"
            b"3\t52\t2\t1\t5\t2009\r\n3\t999\t1\t1\t5\t2009\r\n3\t52\t3\t1\t5\t2009\r\n"
        ),
        "user_friends.dat": b"userID\tfriendID\r\n2\t275\r\n2\t3\r\n3\t2\r\n275\t2\r\n",
    },
    "yelp_dataset": {
        "yelp_academic_dataset_review.json": (
            b'{"review_id":"KU_O5udG6zpxOg-VcAEodg","user_id":"mh_-eMZ6K5RLWhZyISBhwA","business_id":"Pns2l4eNsfO8kk83dixA6A",'
            b'"stars":3.0,"useful":0,"funny":0,"cool":0,"text":"If you\\n\\nThe food","date":"2018-07-07 22:09:11"}\n'
            b'{"review_id":"B","user_id":"u2","business_id":"b2","stars":5.0,"useful":1,"funny":0,"cool":1,"text":"",'
            b'"date":"2012-01-03 15:28:18"}\n'
        ),
        "yelp_academic_dataset_business.json": (
            b'{"business_id":"Pns2l4eNsfO8kk83dixA6A","name":"Abby Rappoport, LAC, CMQ","address":"1616 Chapala St, Ste 2",'
            b'"city":"Santa Barbara","state":"CA","postal_code":"93101","latitude":34.4266787,"longitude":-119.7111968,'
            b'"stars":5.0,"review_count":7,"is_open":0,"attributes":{"ByAppointmentOnly":"True"},"categories":"Doctors, '
            b'Naturopathic\\/Holistic, Health & Medical","hours":null}\n'
            b'{"business_id":"b3","name":"None","address":"","city":"","state":"","postal_code":"","latitude":1,"longitude":2,'
            b'"stars":3.5,"review_count":5,"is_open":1,"attributes":null,"categories":null,"hours":{"Monday":"0:0-0:0"}}\n'
        ),
        "yelp_academic_dataset_user.json": (
            b'{"user_id":"mh_-eMZ6K5RLWhZyISBhwA","name":"Walker","review_count":585,"yelping_since":"2007-01-25 16:47:26",'
            b'"useful":7217,"funny":1259,"cool":5994,"elite":"2007","friends":"NSCy54eWehBJyZdG2iE84w, pe42u7DcCH2QmI81NX-8qA",'
            b'"fans":267,"average_stars":3.91,"compliment_hot":250}\n'
        ),
    },
    "citeulike-a": {
        "users.dat": b"2 0 2\n1 1\n3 2 1 0\n",
        "raw-data.csv": (
            '"doc.id","title","citeulike.id","raw.title","raw.abstract"\n'
            '"1","the metabolic world","42","The metabolic world of ""E. coli""","In metabolic networks,\nnodes"\n'
            '"2","exploring complex networks","43","Exploring complex networks","The study, naïve"\n'
            '"3","comparative assessment","44","Comparative assessment","An NA"\n'
        ).encode("latin-1"),
        "item-tag.dat": b"2 0 2\n0\n1 1\n",
        "tags.dat": b"networks\nreview\nmetabolism\n",
    },
}  # fmt: skip


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Path]:
    """Write one of the downloads into a folder, some files changed (None leaves one out), and give the folder."""

    def write(name: str, changes: dict[str, bytes | None] | None = None, top: Path = tmp_path) -> Path:
        folder = top / name
        for file, content in (RAW[name] | (changes or {})).items():
            if content is not None:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
        return folder

    return write


@pytest.fixture
def zipped() -> Callable[..., Path]:
    """Pack a folder's files below a folder of its name, as owners do, into a zip file beside it, and give its path."""

    def pack(folder: Path, target: str | None = None) -> Path:
        path = folder.parent / (target or f"{folder.name}.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{folder.name}/", "")
            for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
                archive.write(file, f"{folder.name}/{file.relative_to(folder)}")
                archive.writestr(f"__MACOSX/{folder.name}/{file.relative_to(folder)}", b"\x00")
        return path

    return pack
