"""The 67 subjects of CMMLU (arXiv:2306.09212): Chinese names from its prompts, categories from its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STEM, HUMANITIES, SOCIAL, OTHER = "STEM", "humanities", "social science", "other"
CHINA_SPECIFIC = "China-specific"  # a category across the other four


@dataclass(frozen=True)
class Subject:
    """chinese: name in prompts. category: one of the four. is_china_specific: also belongs to CHINA_SPECIFIC."""

    chinese: str
    category: str
    is_china_specific: bool = False


SUBJECTS: Mapping[str, Subject] = {
    "agronomy": Subject("农学", OTHER),
    "anatomy": Subject("解剖学", STEM),
    "ancient_chinese": Subject("古汉语", SOCIAL, is_china_specific=True),
    "arts": Subject("艺术学", HUMANITIES),
    "astronomy": Subject("天文学", STEM),
    "business_ethics": Subject("商业伦理", SOCIAL),
    "chinese_civil_service_exam": Subject("中国公务员考试", SOCIAL, is_china_specific=True),
    "chinese_driving_rule": Subject("中国驾驶规则", OTHER, is_china_specific=True),
    "chinese_food_culture": Subject("中国饮食文化", SOCIAL, is_china_specific=True),
    "chinese_foreign_policy": Subject("中国外交政策", SOCIAL, is_china_specific=True),
    "chinese_history": Subject("中国历史", HUMANITIES, is_china_specific=True),
    "chinese_literature": Subject("中国文学", HUMANITIES, is_china_specific=True),
    "chinese_teacher_qualification": Subject("中国教师资格", SOCIAL, is_china_specific=True),
    "clinical_knowledge": Subject("临床知识", OTHER),
    "college_actuarial_science": Subject("大学精算学", STEM),
    "college_education": Subject("大学教育学", SOCIAL),
    "college_engineering_hydrology": Subject("大学工程水文学", STEM),
    "college_law": Subject("大学法律", HUMANITIES),
    "college_mathematics": Subject("大学数学", STEM),
    "college_medical_statistics": Subject("大学医学统计", STEM),
    "college_medicine": Subject("大学医学", OTHER),
    "computer_science": Subject("计算机科学", STEM),
    "computer_security": Subject("计算机安全", OTHER),
    "conceptual_physics": Subject("概念物理学", STEM),
    "construction_project_management": Subject("建设工程管理", OTHER, is_china_specific=True),
    "economics": Subject("经济学", SOCIAL),
    "education": Subject("教育学", SOCIAL),
    "electrical_engineering": Subject("电气工程", STEM),
    "elementary_chinese": Subject("小学语文", SOCIAL, is_china_specific=True),
    "elementary_commonsense": Subject("小学常识", OTHER, is_china_specific=True),
    "elementary_information_and_technology": Subject("小学信息技术", OTHER),
    "elementary_mathematics": Subject("初等数学", STEM),
    "ethnology": Subject("民族学", SOCIAL, is_china_specific=True),
    "food_science": Subject("食品科学", OTHER),
    "genetics": Subject("遗传学", STEM),
    "global_facts": Subject("全球事实", HUMANITIES),
    "high_school_biology": Subject("高中生物", STEM),
    "high_school_chemistry": Subject("高中化学", STEM),
    "high_school_geography": Subject("高中地理", SOCIAL),
    "high_school_mathematics": Subject("高中数学", STEM),
    "high_school_physics": Subject("高中物理学", STEM),
    "high_school_politics": Subject("高中政治", SOCIAL, is_china_specific=True),
    "human_sexuality": Subject("人类性行为", OTHER),
    "international_law": Subject("国际法学", HUMANITIES),
    "journalism": Subject("新闻学", SOCIAL),
    "jurisprudence": Subject("法理学", HUMANITIES),
    "legal_and_moral_basis": Subject("法律与道德基础", OTHER),
    "logical": Subject("逻辑学", HUMANITIES),
    "machine_learning": Subject("机器学习", STEM),
    "management": Subject("管理学", SOCIAL),
    "marketing": Subject("市场营销", SOCIAL),
    "marxist_theory": Subject("马克思主义理论", HUMANITIES),
    "modern_chinese": Subject("现代汉语", SOCIAL, is_china_specific=True),
    "nutrition": Subject("营养学", OTHER),
    "philosophy": Subject("哲学", HUMANITIES),
    "professional_accounting": Subject("专业会计", SOCIAL),
    "professional_law": Subject("专业法学", HUMANITIES),
    "professional_medicine": Subject("专业医学", OTHER),
    "professional_psychology": Subject("专业心理学", SOCIAL),
    "public_relations": Subject("公共关系", SOCIAL),
    "security_study": Subject("安全研究", SOCIAL),
    "sociology": Subject("社会学", SOCIAL),
    "sports_science": Subject("体育学", OTHER),
    "traditional_chinese_medicine": Subject("中医中药", OTHER, is_china_specific=True),
    "virology": Subject("病毒学", STEM),
    "world_history": Subject("世界历史", HUMANITIES),
    "world_religions": Subject("世界宗教", HUMANITIES),
}
