"""Training images: the URI in ECR of AWS's own algorithms, by name, region and version."""

from __future__ import annotations

from dataclasses import dataclass

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError

ACCOUNTS = {
    "af-south-1": ("510948584623", "455444449433"),
    "ap-east-1": ("651117190479", "286214385809"),
    "ap-northeast-1": ("354813040037", "351501993468"),
    "ap-northeast-2": ("366743142698", "835164637446"),
    "ap-northeast-3": ("867004704886", "867004704886"),
    "ap-south-1": ("720646828776", "991648021394"),
    "ap-south-2": ("628508329040", "628508329040"),
    "ap-southeast-1": ("121021644041", "475088953585"),
    "ap-southeast-2": ("783357654285", "712309505854"),
    "ap-southeast-3": ("951798379941", "951798379941"),
    "ap-southeast-4": ("106583098589", "106583098589"),
    "ca-central-1": ("341280168497", "469771592824"),
    "ca-west-1": ("190319476487", "190319476487"),
    "cn-north-1": ("450853457545", "390948362332"),
    "cn-northwest-1": ("451049120500", "387376663083"),
    "eu-central-1": ("492215442770", "664544806723"),
    "eu-central-2": ("680994064768", "680994064768"),
    "eu-north-1": ("662702820516", "669576153137"),
    "eu-south-1": ("978288397137", "257386234256"),
    "eu-south-2": ("104374241257", "104374241257"),
    "eu-west-1": ("141502667606", "438346466558"),
    "eu-west-2": ("764974769150", "644912444149"),
    "eu-west-3": ("659782779980", "749696950732"),
    "il-central-1": ("898809789911", "898809789911"),
    "me-central-1": ("272398656194", "272398656194"),
    "me-south-1": ("801668240914", "249704162688"),
    "sa-east-1": ("737474898029", "855470959533"),
    "us-east-1": ("683313688378", "382416733822"),
    "us-east-2": ("257758044811", "404615174143"),
    "us-gov-east-1": ("237065988967", "237065988967"),
    "us-gov-west-1": ("414596584902", "226302683700"),
    "us-iso-east-1": ("833128469047", "490574956308"),
    "us-isob-east-1": ("281123927165", "765400339828"),
    "us-isof-east-1": ("108575199400", "108575199400"),
    "us-isof-south-1": ("124985052026", "124985052026"),
    "us-west-1": ("746614075791", "632365934929"),
    "us-west-2": ("246618743249", "174872318107"),
}
"""By region: the accounts of the framework containers (XGBoost, scikit-learn) and of the first
algorithms. From the tables of SageMaker's Python SDK (sagemaker-core 2.27.0)."""

XGBOOST_VERSIONS = ("1.2-1", "1.2-2", "1.3-1", "1.5-1", "1.7-1", "3.0-5", "3.2-0")
SKLEARN_VERSIONS = ("1.2-1", "1.4-2")


@dataclass(frozen=True)
class Algorithm:
    """A container of AWS's own.

    Attributes:
        repository: in ECR.
        versions: tags, the one that is taken by default last.
        is_framework: of a framework, which runs a script too, and has accounts of its own.
        suffix: of the tag.
        needs_script: it trains nothing by itself.
    """

    repository: str
    versions: tuple[str, ...] = ("1",)
    is_framework: bool = False
    suffix: str = ""
    needs_script: bool = False


ALGORITHMS = {
    "xgboost": Algorithm("sagemaker-xgboost", XGBOOST_VERSIONS, is_framework=True),
    "sklearn": Algorithm(
        "sagemaker-scikit-learn", SKLEARN_VERSIONS, True, "-cpu-py3", needs_script=True
    ),
    "linear-learner": Algorithm("linear-learner"),
    "factorization-machines": Algorithm("factorization-machines"),
    "kmeans": Algorithm("kmeans"),
    "knn": Algorithm("knn"),
    "pca": Algorithm("pca"),
    "randomcutforest": Algorithm("randomcutforest"),
}
# These run a script that AWS keeps in a bucket beside the image, both of another name a version.
FROM_JUMPSTART = ("lightgbm", "catboost", "autogluon", "tabtransformer")


def image_uri(algorithm: str, region: str, version: str | None = None) -> str:
    """The ECR URI of a built-in algorithm's training image.

    Args:
        algorithm: a name of `ALGORITHMS`, for example `xgboost`.
        region: of the job, for example `eu-west-1`.
        version: for example `1.7-1`; by default the newest that is known here.

    Raises:
        ConfigError: an algorithm, a version or a region that is not in the tables here.
    """
    if algorithm in FROM_JUMPSTART:
        raise ConfigError(
            f"`{algorithm}` is an algorithm of JumpStart, whose image and script differ from "
            "version to version. Pass image= with the URI that its page in AWS's documentation "
            "names for your region, and the script."
        )
    found = ALGORITHMS.get(algorithm)
    if found is None:
        raise ConfigError(
            f"No image of `{algorithm}` is known here. Known: {', '.join(ALGORITHMS)}. For "
            "another pass image= with its URI in ECR."
        )
    version = version or found.versions[-1]
    if version not in found.versions:
        raise ConfigError(
            f"`{algorithm}` has no version `{version}` that is known here. Known: "
            f"{', '.join(found.versions)}. For another pass image= with its URI in ECR."
        )
    accounts = ACCOUNTS.get(region)
    if accounts is None:
        raise ConfigError(
            f"The account of `{algorithm}` in region `{region}` is not known here. Pass image= "
            "with its URI in ECR."
        )
    account = accounts[0 if found.is_framework else 1]
    registry = f"{account}.dkr.ecr.{region}.{aws_access.dns_suffix(region)}"
    return f"{registry}/{found.repository}:{version}{found.suffix}"


SPARK_ACCOUNTS = {
    "af-south-1": "309385258863",
    "ap-east-1": "732049463269",
    "ap-east-2": "533267296287",
    "ap-northeast-1": "411782140378",
    "ap-northeast-2": "860869212795",
    "ap-northeast-3": "102471314380",
    "ap-south-1": "105495057255",
    "ap-south-2": "873151114052",
    "ap-southeast-1": "759080221371",
    "ap-southeast-2": "440695851116",
    "ap-southeast-3": "800295151634",
    "ap-southeast-4": "819679513684",
    "ap-southeast-5": "841784149062",
    "ap-southeast-6": "278240940207",
    "ap-southeast-7": "471112967968",
    "ca-central-1": "446299261295",
    "ca-west-1": "000907499111",
    "cn-north-1": "671472414489",
    "cn-northwest-1": "844356804704",
    "eu-central-1": "906073651304",
    "eu-central-2": "142351485170",
    "eu-north-1": "330188676905",
    "eu-south-1": "753923664805",
    "eu-south-2": "833944533722",
    "eu-west-1": "571004829621",
    "eu-west-2": "836651553127",
    "eu-west-3": "136845547031",
    "il-central-1": "408426139102",
    "me-central-1": "395420993607",
    "me-south-1": "750251592176",
    "mx-central-1": "211125459255",
    "sa-east-1": "737130764395",
    "us-east-1": "173754725891",
    "us-east-2": "314815235551",
    "us-gov-east-1": "260923028637",
    "us-gov-west-1": "271483468897",
    "us-west-1": "667973535471",
    "us-west-2": "153931337802",
}
"""By region: the accounts of the Spark container, from the same tables."""

SPARK_TAG = "3.5-cpu-py312-v1"
"""Spark 3.5; its other Python, 3.9, is older than this package takes."""


def spark_image_uri(region: str) -> str:
    """The ECR URI of AWS's Spark container for processing jobs.

    Raises:
        ConfigError: a region that is not in the table here.
    """
    account = SPARK_ACCOUNTS.get(region)
    if account is None:
        raise ConfigError(
            f"The account of the Spark container in region `{region}` is not known here. Pass its "
            "URI in ECR as image."
        )
    suffix = aws_access.dns_suffix(region)
    return f"{account}.dkr.ecr.{region}.{suffix}/sagemaker-spark-processing:{SPARK_TAG}"
