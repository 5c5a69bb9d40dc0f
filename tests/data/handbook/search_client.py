"""Ask a running nvr-rag server from Python, with nothing but the standard library.

    python search_client.py "how do I restore a backup"
    python search_client.py "restore" --collection work --mode lexical -k 3
    python search_client.py "restore" --filter '{"media_type": "application/pdf"}'

The server is the one that `nvr-rag serve` starts. Its address is http://127.0.0.1:8000 unless --url says otherwise.

Copy the two functions `search` and `send_feedback` into your own program: they are the whole integration that a
question-answering bot needs. Search, let the language model write its answer from the texts of the hits, and tell the
server afterwards which hits were used or liked.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request

DEFAULT_URL = "http://127.0.0.1:8000"


def post(url, body, timeout=30.0):
    """Send JSON, return the JSON of the answer. Raises RuntimeError with the server's own words."""
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode("utf-8"),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the server answered {error.code}: {error.read().decode('utf-8', 'replace')}") from error
    except urllib.error.URLError as error:
        raise RuntimeError(f"no server at {url} ({error.reason}); start one with: nvr-rag serve") from error


def search(query, *, url=DEFAULT_URL, collection="default", k=5, mode=None, where=None, user=None):
    """Return the answer of POST /v1/search: a dict with query_id, collection, mode, deployment and hits.

    mode is "dense", "lexical" or "hybrid"; None leaves it to the deployment that serves the collection.
    where is a dict in the filter language, such as {"media_type": "text/html"}.
    """
    body = {"query": query, "collection": collection, "k": k}
    if mode is not None:
        body["mode"] = mode
    if where is not None:
        body["filter"] = where
    if user is not None:
        body["user"] = user
    return post(f"{url}/v1/search", body)


def send_feedback(query_id, kind, *, chunk_id=None, grade=None, user=None, url=DEFAULT_URL):
    """Tell the server about a hit: kind is relevant, irrelevant, click, cited, answer_good or answer_bad.

    chunk_id is needed for all kinds but the last two. Sending the same thing twice does no harm. A better retriever is
    trained on relevant and irrelevant, so these are worth most.
    """
    body = {"query_id": query_id, "kind": kind}
    if chunk_id is not None:
        body["chunk_id"] = chunk_id
    if grade is not None:
        body["grade"] = grade
    if user is not None:
        body["user"] = user
    return post(f"{url}/v1/feedback", body)


def context_for_prompt(answer, characters=6000):
    """The texts of the best hits as one string for a language model, each with its source, within a budget."""
    parts = []
    for hit in answer["hits"]:
        place = " > ".join([hit["document"]["title"], *hit["headings"]])
        part = f"[{hit['rank']}] {place}\n{hit['text']}"
        characters -= len(part)
        if characters < 0:
            break
        parts.append(part)
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description="Search with nvr-rag.")
    parser.add_argument("query")
    parser.add_argument("--url", default=DEFAULT_URL)
    parser.add_argument("--collection", default="default")
    parser.add_argument("--mode", choices=["dense", "lexical", "hybrid"])
    parser.add_argument("--filter", type=json.loads, help="a filter in JSON")
    parser.add_argument("-k", type=int, default=5, help="number of hits")
    options = parser.parse_args()
    try:
        answer = search(
            options.query,
            url=options.url,
            collection=options.collection,
            k=options.k,
            mode=options.mode,
            where=options.filter,
        )
    except RuntimeError as error:
        sys.exit(str(error))
    for hit in answer["hits"]:
        page = f", page {hit['page']}" if hit["page"] else ""
        print(f"{hit['rank']}. {hit['document']['title']}{page} ({hit['score']:.4f})")
        print(f"   {hit['document']['uri']}")
        print(f"   {hit['text'][:200]!r}")
    print(f"query_id {answer['query_id']}, answered by deployment {answer['deployment']['id']}")


if __name__ == "__main__":
    main()
